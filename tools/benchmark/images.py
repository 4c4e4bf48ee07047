"""Real images and targets of ``data/tiny/coco`` as mmseg's and mmdet's models take them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.benchmark import harness

DATA = harness.ROOT / 'data/tiny/coco'
NAMES = ('000000000030', '000000000436')
# Of the whole image's result, where the image is enlarged to 800 x 1333.
PANOPTIC_SIZE, PANOPTIC_FILE_SIZE = (800, 1333), (384, 640)


def semantic_batch(size: int, number: int) -> dict[str, Any]:
    """Crops through mmseg's own transforms, not yet normalised, with their label maps."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import TRANSFORMS

    init_default_scope('mmseg')
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations'},
        {'type': 'Resize', 'scale': (4 * size, size), 'keep_ratio': True},
        {'type': 'RandomCrop', 'crop_size': (size, size)},
        {'type': 'PackSegInputs'},
    ]
    transforms = [TRANSFORMS.build(step) for step in pipeline]
    np.random.seed(0)
    return _batch([_semantic(name, transforms) for name in NAMES[:number]])


def _semantic(name: str, transforms: list[Callable[[dict], dict]]) -> dict[str, Any]:
    data: dict[str, Any] = {
        'img_path': str(DATA / f'img/train/{name}.jpg'),
        'seg_map_path': str(DATA / f'labelmap/train/{name}.png'),
        'seg_fields': [],
        'reduce_zero_label': False,
    }
    for transform in transforms:
        data = transform(data)
    # The crop is the image: nothing is left to scale back to.
    data['data_samples'].set_metainfo({'ori_shape': data['data_samples'].img_shape})
    return data


def _batch(packed: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: [sample[key] for sample in packed] for key in ('inputs', 'data_samples')}


def panoptic_batch(scale: float = 1.0) -> dict[str, Any]:
    """One image as the COCO test enlarges it, ``scale`` of that."""
    import mmcv
    from mmdet.structures import DetDataSample

    path = DATA / f'img/train/{NAMES[0]}.jpg'
    height, width = (round(side * scale) for side in PANOPTIC_SIZE)
    pixels = mmcv.imresize(mmcv.imread(path), (width, height))
    meta = {
        'img_path': str(path),
        'img_shape': (height, width),
        'ori_shape': tuple(round(side * scale) for side in PANOPTIC_FILE_SIZE),
    }
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return {'inputs': [tensor], 'data_samples': [DetDataSample(metainfo=meta)]}


def class_masks(label_map: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Labels ``(N,)`` and float masks ``(N, H, W)`` of a label map, as Hugging Face takes them."""
    labels = label_map.unique()
    labels = labels[labels != ignore_index].long()
    return labels, (label_map == labels[:, None, None]).float()
