"""What metrics and result files take from a sample and from a data set's ``metainfo``.

A sample is a ``DetDataSample`` as a dict, predictions of our models or of mmdet's.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.fileio import get
from torch import Tensor

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
    """``masks (N, H, W)`` bool, columns together in memory; ``labels (N,)``, ``scores (N,)``."""

    masks: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def panoptic_of(sample: Sample, num_classes: int) -> Segments:
    """The predicted segments.

    Raises:
        ValueError: there are none to take, or a class the data set does not have.
    """
    encoded = _prediction(sample, 'pred_panoptic_seg', 'sem_seg', 'panoptic_on')
    try:
        return decode_panoptic(_array(encoded).squeeze(0), num_classes)
    except ValueError as error:
        raise ValueError(f'{source_of(sample)}: {error}') from None


def label_map_of(sample: Sample) -> np.ndarray:
    """The predicted class of each pixel ``(H, W)``.

    Raises:
        ValueError: there is none to take.
    """
    return _array(_prediction(sample, 'pred_sem_seg', 'sem_seg', 'semantic_on')).squeeze(0)


def instances_of(sample: Sample) -> PredictedInstances:
    """The predicted instances.

    Raises:
        ValueError: there are none to take, or they have no masks.
    """
    masks, labels, scores = (
        _prediction(sample, 'pred_instances', key, 'instance_on')
        for key in ('masks', 'labels', 'scores')
    )
    if isinstance(masks, Tensor):
        masks = columnwise(masks)
    elif isinstance(masks, list):  # test_cfg.mask_format='rle'
        masks = decode_masks(masks, sample['ori_shape'])
    return PredictedInstances(np.asarray(masks, bool), _array(labels), _array(scores))


def columnwise(masks: Tensor) -> np.ndarray:
    """``(N, H, W)`` bool on the host, each column of a mask together in memory.

    Run lengths go down the columns: the device turns the masks faster than the host does.
    """
    return _array(masks.to(torch.bool).transpose(1, 2).contiguous()).transpose(0, 2, 1)


def _prediction(sample: Sample, field: str, key: str, switch: str) -> Any:
    if field not in sample:
        raise ValueError(
            f'{source_of(sample)}: the model gave no {field}. Set test_cfg.{switch}=True, or '
            'remove the metric that needs it from the evaluator'
        )
    if key not in sample[field]:
        raise ValueError(f'{source_of(sample)}: {field} has no {key}, only {sorted(sample[field])}')
    return sample[field][key]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def true_segments_of(sample: Sample, stated_areas: bool = False) -> AnnotatedSegments:
    """The segments of the panoptic PNG that belongs to the sample.

    Raises:
        ValueError: the sample does not name it, or it does not fit its annotation, with its path.
        OSError: it is missing or broken, with its path.
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


@contextlib.contextmanager
def errors_name(kind: str, path: str) -> Iterator[None]:
    """Errors of what is wrong with a file begin with its path."""
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot read the {kind} {path}: {error}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def segment_files(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The panoptic PNG that metrics will read, if the record names one, and what to do without."""
    hint = 'Check data_root and data_prefix.seg of the data set'
    return [(record['seg_map_path'], hint)] if record.get('seg_map_path') else []


def source_of(sample: Sample) -> str:
    """A name of the sample for messages."""
    return sample.get('img_path') or f'image {sample.get("img_id")}'


def is_thing(meta: Mapping[str, Any]) -> np.ndarray | None:
    """Which classes are things ``(K,)`` bool; None if the data set does not tell."""
    thing_ids = thing_ids_of(meta)
    return None if thing_ids is None else np.isin(np.arange(len(meta['classes'])), thing_ids)


def category_ids_by_name(classes: Sequence[str], categories: Mapping[int, str]) -> list[int]:
    """Category ids per class of a data set that names its classes only, as mmdet's do.

    mmdet numbers the classes in the order of the file, whatever the order of the names.

    Raises:
        ValueError: the file lacks one of the classes, or has several of a name.
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
