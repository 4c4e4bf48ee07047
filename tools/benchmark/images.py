"""Real images and targets of `data/tiny/coco`, as the models of mmseg and mmdet take them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.benchmark.cases import Case
from tools.benchmark.measure import ROOT

DATA = ROOT / 'data/tiny/coco'
NAMES = ('000000000030', '000000000436')
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# COCO's test enlarges the first image to 800 x 1333; its results have the size of the file.
FILE_SHARE = 0.48

Batch = dict[str, Any]


def batch_of(case: Case) -> Batch:
    """Return the images of a case, with label maps if they are crops."""
    if case.model == 'panoptic':
        return panoptic_batch(case.size)
    return semantic_batch(case.size[0], case.batch)


def semantic_batch(side: int, number: int) -> Batch:
    """Return `number` square crops with their label maps, by mmseg's own transforms.

    The images are not normalized yet.
    """
    from mmcv.transforms import Compose
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')
    transforms = Compose(
        [
            {'type': 'LoadImageFromFile'},
            {'type': 'LoadAnnotations'},
            {'type': 'Resize', 'scale': (4 * side, side), 'keep_ratio': True},
            {'type': 'RandomCrop', 'crop_size': (side, side)},
            {'type': 'PackSegInputs'},
        ]
    )
    np.random.seed(0)
    batch: Batch = {'inputs': [], 'data_samples': []}
    for name in NAMES[:number]:
        files = {
            'img_path': str(DATA / f'img/train/{name}.jpg'),
            'seg_map_path': str(DATA / f'labelmap/train/{name}.png'),
        }
        packed = transforms({**files, 'seg_fields': [], 'reduce_zero_label': False})
        # The crop counts as the whole image: no result is scaled back.
        packed['data_samples'].set_metainfo({'ori_shape': packed['data_samples'].img_shape})
        batch['inputs'].append(packed['inputs'])
        batch['data_samples'].append(packed['data_samples'])
    return batch


def panoptic_batch(size: tuple[int, int]) -> Batch:
    """Return one image enlarged to `size`, as COCO's test does."""
    import mmcv
    from mmdet.structures import DetDataSample

    path = DATA / f'img/train/{NAMES[0]}.jpg'
    pixels = mmcv.imresize(mmcv.imread(path), size[::-1])
    meta = {
        'img_path': str(path),
        'img_shape': size,
        'ori_shape': tuple(round(FILE_SHARE * side) for side in size),
    }
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return {'inputs': [tensor], 'data_samples': [DetDataSample(metainfo=meta)]}


def normalized(batch: Batch) -> Tensor:
    """Return the images as mmseg's preprocessor would: RGB, with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.stack(batch['inputs']).flip(1).float() - mean) / std


def class_masks(label_map: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Return labels `(N,)` and float masks `(N, H, W)` as Hugging Face takes them."""
    labels = label_map.unique()
    labels = labels[labels != ignore_index].long()
    return labels, (label_map == labels[:, None, None]).float()
