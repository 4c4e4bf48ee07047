"""Read predictions and ground truth from a sample, and write to the log.

A sample is a data sample as a dict. It may come from our models, or from mmdet's or mmseg's.
"""

import logging
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from mmengine.fileio import get
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f.adapters.arrays import columnwise, to_array
from mmseg_m2f.adapters.errors import name_file_in_errors
from mmseg_m2f.adapters.things import thing_ids_of
from mmseg_m2f.evaluation import panoptic_map
from mmseg_m2f.evaluation.rle import decode_masks

Sample = Mapping[str, Any]


def panoptic_of(sample: Sample, num_classes: int) -> panoptic_map.Segments:
    """Return the predicted segments; ``ValueError`` if there are none, or of an unknown class."""
    encoded = to_array(_field(sample, 'pred_panoptic_seg', 'panoptic_on')['sem_seg'])
    with name_file_in_errors('prediction', source_of(sample)):
        return panoptic_map.decode_panoptic(encoded.squeeze(0), num_classes)


def label_map_of(sample: Sample, field: str = 'pred_sem_seg') -> np.ndarray:
    """Return the class index of each pixel ``(H, W)``; ``ValueError`` without such a field."""
    pixels = _field(sample, field, 'semantic_on')
    # mmdet calls the map sem_seg, mmseg calls it data.
    return to_array(pixels['sem_seg' if 'sem_seg' in pixels else 'data']).squeeze(0)


def instances_of(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the predicted ``masks (N, H, W)`` bool, ``labels (N,)`` and ``scores (N,)``."""
    instances = _field(sample, 'pred_instances', 'instance_on')
    if 'masks' not in instances:
        raise ValueError(f'{source_of(sample)}: pred_instances has no masks, only {[*instances]}')
    masks = instances['masks']
    if isinstance(masks, Tensor):
        masks = columnwise(masks)
    elif isinstance(masks, list):  # test_cfg.mask_format='rle'
        masks = decode_masks(masks, sample['ori_shape'])
    return np.asarray(masks, bool), to_array(instances['labels']), to_array(instances['scores'])


def _field(sample: Sample, field: str, switch: str) -> Mapping[str, Any]:
    if field not in sample:
        raise ValueError(
            f'{source_of(sample)}: the model gave no {field}. Set test_cfg.{switch}=True, or '
            'remove the metric that needs it from the evaluator'
        )
    return sample[field]


def true_segments_of(sample: Sample, stated_areas: bool = False) -> panoptic_map.AnnotatedSegments:
    """Read the panoptic PNG that the sample names."""
    missing = [key for key in ('seg_map_path', 'segments_info') if key not in sample]
    if missing:
        raise ValueError(
            f'{source_of(sample)}: the sample has no {missing}. They come from '
            'mmseg_m2f.PanopticDataset and must be among the meta_keys of the packing transform'
        )
    path = sample['seg_map_path']
    with name_file_in_errors('panoptic PNG', path):
        file = BytesIO(get(path))
        return panoptic_map.read_segments(file, sample['segments_info'], stated_areas)


def segment_files(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the panoptic PNG of a record, if it names one, with a hint for when it is missing."""
    hint = 'Check data_root and data_prefix.seg of the data set'
    return [(record['seg_map_path'], hint)] if record.get('seg_map_path') else []


def is_thing(meta: Mapping[str, Any]) -> np.ndarray | None:
    """Tell which classes are things, ``(K,)`` bool; None if the data set does not say."""
    thing_ids = thing_ids_of(meta)
    return None if thing_ids is None else np.isin(np.arange(len(meta['classes'])), thing_ids)


def source_of(sample: Sample) -> str:
    """Name the image of a sample in a message."""
    return sample.get('img_path') or f'image {sample.get("img_id")}'


def log(message: str, level: int = logging.INFO) -> None:
    """Write a message to the log of the run."""
    print_log(message, 'current', level)
