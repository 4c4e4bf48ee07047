"""Real images with panoptic targets, in mmdet's layout and in ours."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.benchmark.images import DATA, NAMES


def panoptic_training_batch(side: int, number: int) -> dict[str, Any]:
    """Images drawn to a square; each model reads the annotations in its own pipeline's layout."""
    file = json.loads((DATA / 'annotations/panoptic_train.json').read_text())
    segments = {
        a['file_name'].removesuffix('.png'): a['segments_info'] for a in file['annotations']
    }
    things = [c['id'] for c in file['categories'] if c['isthing']]
    stuff = [c['id'] for c in file['categories'] if not c['isthing']]
    labels = {category: label for label, category in enumerate([*things, *stuff])}
    packed = [
        _sample(
            name, side, {s['id']: labels[s['category_id']] for s in segments[name]}, len(things)
        )
        for name in NAMES[:number]
    ]
    return {
        'inputs': [inputs for inputs, _ in packed],
        'data_samples': [sample for _, sample in packed],
    }


def _sample(name: str, side: int, labels: dict[int, int], num_things: int) -> tuple[Tensor, Any]:
    import mmcv

    pixels = mmcv.imresize(mmcv.imread(DATA / f'img/train/{name}.jpg'), (side, side))
    colors = mmcv.imread(DATA / f'panoptic/train/{name}.png', channel_order='rgb')
    ids = colors.astype(np.int64) @ [1, 256, 65536]
    rows, columns = ((np.arange(side) * length) // side for length in ids.shape)
    ids = ids[rows][:, columns]
    # A segment may vanish where the image shrinks.
    labels = {number: label for number, label in labels.items() if (ids == number).any()}
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return tensor, _annotated(name, ids, labels, num_things)


def _annotated(name: str, ids: np.ndarray, labels: dict[int, int], num_things: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    label_map = np.full(ids.shape, 255)
    segment_map = np.full(ids.shape, -1, np.int16)
    for index, (number, label) in enumerate(labels.items()):
        label_map[ids == number] = label
        segment_map[ids == number] = index
    instances = [number for number, label in labels.items() if label < num_things]
    masks = np.array([ids == number for number in instances], np.uint8).reshape(-1, *ids.shape)
    thing_labels = torch.tensor([labels[number] for number in instances], dtype=torch.long)
    meta = {'img_path': name, 'img_shape': ids.shape, 'ori_shape': ids.shape}
    return DetDataSample(
        metainfo=meta,
        gt_instances=InstanceData(labels=thing_labels, masks=BitmapMasks(masks, *ids.shape)),
        gt_sem_seg=PixelData(sem_seg=torch.from_numpy(label_map)[None]),
        gt_panoptic_seg=PixelData(segment_idx=torch.from_numpy(segment_map)[None]),
        gt_segments=InstanceData(labels=torch.tensor(list(labels.values()))),
    )
