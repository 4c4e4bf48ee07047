"""Read predictions and ground truth from a sample, and class facts from a data set's ``metainfo``.

A sample is a ``DetDataSample`` as a dict. It may come from our models or from mmdet's.
"""

import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from mmengine.fileio import get
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f.adapters.arrays import columnwise, to_array
from mmseg_m2f.adapters.errors import errors_name
from mmseg_m2f.adapters.things import thing_ids_of
from mmseg_m2f.evaluation.panoptic_map import (
    AnnotatedSegments,
    Segments,
    decode_panoptic,
    read_segments,
)
from mmseg_m2f.evaluation.rle import decode_masks

Sample = Mapping[str, Any]


class PredictedInstances(NamedTuple):
    """Instances that a model found in one image.

    ``masks (N, H, W)`` bool, ``labels (N,)`` class indices, ``scores (N,)`` in [0, 1].
    """

    masks: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def panoptic_of(sample: Sample, num_classes: int) -> Segments:
    """Return the predicted segments.

    Raises:
        ValueError: the sample has none, or a class that the data set does not have.
    """
    encoded = _prediction(sample, 'pred_panoptic_seg', 'sem_seg', 'panoptic_on')
    try:
        return decode_panoptic(to_array(encoded).squeeze(0), num_classes)
    except ValueError as error:
        raise ValueError(f'{source_of(sample)}: {error}') from None


def label_map_of(sample: Sample) -> np.ndarray:
    """Return the predicted class index of each pixel ``(H, W)``.

    Raises:
        ValueError: the sample has no semantic prediction.
    """
    return to_array(_prediction(sample, 'pred_sem_seg', 'sem_seg', 'semantic_on')).squeeze(0)


def instances_of(sample: Sample) -> PredictedInstances:
    """Return the predicted instances.

    Raises:
        ValueError: the sample has no instances, or they have no masks.
    """
    masks, labels, scores = (
        _prediction(sample, 'pred_instances', key, 'instance_on')
        for key in ('masks', 'labels', 'scores')
    )
    if isinstance(masks, Tensor):
        masks = columnwise(masks)
    elif isinstance(masks, list):  # test_cfg.mask_format='rle'
        masks = decode_masks(masks, sample['ori_shape'])
    return PredictedInstances(np.asarray(masks, bool), to_array(labels), to_array(scores))


def _prediction(sample: Sample, field: str, key: str, switch: str) -> Any:
    if field not in sample:
        raise ValueError(
            f'{source_of(sample)}: the model gave no {field}. Set test_cfg.{switch}=True, or '
            'remove the metric that needs it from the evaluator'
        )
    if key not in sample[field]:
        raise ValueError(f'{source_of(sample)}: {field} has no {key}, only {sorted(sample[field])}')
    return sample[field][key]


def true_segments_of(sample: Sample, stated_areas: bool = False) -> AnnotatedSegments:
    """Read the panoptic PNG that the sample names.

    Raises:
        ValueError: the sample names no PNG, or the PNG does not fit its annotation.
        OSError: the PNG is missing or broken.
    """
    missing = [key for key in ('seg_map_path', 'segments_info') if key not in sample]
    if missing:
        raise ValueError(
            f'{source_of(sample)}: the sample has no {missing}. They come from '
            'mmseg_m2f.PanopticDataset and must be among the meta_keys of the packing transform'
        )
    path = sample['seg_map_path']
    with errors_name('panoptic PNG', path):
        return read_segments(BytesIO(get(path)), sample['segments_info'], stated_areas)


def segment_files(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the panoptic PNG of a record, if it names one, with a hint for when it is missing."""
    hint = 'Check data_root and data_prefix.seg of the data set'
    return [(record['seg_map_path'], hint)] if record.get('seg_map_path') else []


def log(message: str, level: int = logging.INFO) -> None:
    """Write a message to the log of the run."""
    print_log(message, 'current', level)


def source_of(sample: Sample) -> str:
    """Name the image of a sample in a message."""
    return sample.get('img_path') or f'image {sample.get("img_id")}'


def is_thing(meta: Mapping[str, Any]) -> np.ndarray | None:
    """Tell which classes are things, ``(K,)`` bool; None if the data set does not say."""
    thing_ids = thing_ids_of(meta)
    return None if thing_ids is None else np.isin(np.arange(len(meta['classes'])), thing_ids)


def category_ids_by_name(classes: Sequence[str], categories: Mapping[int, str]) -> list[int]:
    """Find the category id of each class for a data set that only names its classes, as mmdet's do.

    mmdet numbers the classes in the order of the file, whatever the order of the names.

    Raises:
        ValueError: the file lacks one of the classes, or has one of the names twice.
    """
    category_ids = [i for i, name in categories.items() if name in classes]
    names = [categories[i] for i in category_ids]
    if sorted(names) != sorted(classes):
        missing = sorted(set(classes) - set(names)) or 'none, but a name occurs twice'
        raise ValueError(
            f"the file's categories are not the data set's classes; classes without category: "
            f'{missing}. Give the data set category_ids, one for each class'
        )
    return category_ids
