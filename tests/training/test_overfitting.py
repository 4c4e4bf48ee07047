"""A panoptic model learns four real images by heart: data, losses, results and metrics agree.

A sign error anywhere between the JSON file and the metric would show here: nothing less than the
right masks under the right classes passes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch.nn import functional as F

pytest.importorskip('mmdet')
from mmseg_m2f import core

COCO = Path(__file__).parents[2] / 'data/tiny/coco'
ANNOTATIONS = COCO / 'annotations/panoptic_train.json'
# Real images with 2 to 5 segments, none of them a crowd.
IMAGES = ('000000000285', '000000000072', '000000000073', '000000000436')
SIDE = 256
NUM_CLASSES, NUM_THINGS = 133, 80


def segment_masks(name):
    """The image's segments, (N, H, W) bool, at the size of the file."""
    listed = json.loads(ANNOTATIONS.read_text())['annotations']
    (item,) = (item for item in listed if item['file_name'] == f'{name}.png')
    rgb = np.asarray(Image.open(COCO / f'panoptic/train/{name}.png').convert('RGB'), np.int64)
    ids = rgb @ [1, 256, 256**2]
    return torch.stack([torch.from_numpy(ids == s['id']) for s in item['segments_info']])


@pytest.mark.parametrize('name', IMAGES)
def test_the_images_can_be_said_in_stride_4(name):
    """IoU of each mask with the best a stride-4 map of the resized image can say about it."""
    masks = segment_masks(name)
    original = masks.shape[-2:]
    height, width = (round(side * SIDE / max(original)) for side in original)
    resized = F.interpolate(masks[None].float(), size=(height, width), mode='area')
    padded = F.pad(resized, (0, -width % 32, 0, -height % 32))
    logits = F.avg_pool2d(padded, 4)[0] - 0.5
    geometry = core.ImageGeometry(tuple(padded.shape[-2:]), (height, width), tuple(original))
    restored = core.restore_masks(logits, geometry) > 0
    both, either = (restored & masks).sum((1, 2)), (restored | masks).sum((1, 2))
    assert len(masks) <= 6
    assert (both / either).min() >= 0.95


def loader(batch_size, pipeline, sampler, **options):
    listed = json.loads(ANNOTATIONS.read_text())['images']
    order = [Path(image['file_name']).stem for image in listed]
    return {
        'batch_size': batch_size,
        'num_workers': 0,
        'collate_fn': {'type': 'pseudo_collate'},
        'sampler': {'type': sampler, 'shuffle': False},
        'dataset': {
            'type': 'mmseg_m2f.PanopticDataset',
            'data_root': str(COCO),
            'ann_file': 'annotations/panoptic_train.json',
            'data_prefix': {'img': 'img/train', 'seg': 'panoptic/train'},
            'metadata': 'coco_panoptic',
            'indices': [order.index(name) for name in IMAGES],
            'pipeline': pipeline,
            **options,
        },
    }


def model():
    return {
        'type': 'mmseg_m2f.Mask2Former',
        'data_preprocessor': {
            'type': 'DetDataPreprocessor',
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'bgr_to_rgb': True,
            'pad_size_divisor': 32,
        },
        'backbone': {'type': 'ResNet', 'depth': 18, 'norm_cfg': {'type': 'BN'}, 'norm_eval': False},
        'panoptic_head': {
            'type': 'mmseg_m2f.Mask2FormerUniversalHead',
            'num_classes': NUM_CLASSES,
            'thing_ids': list(range(NUM_THINGS)),
            'in_channels': [64, 128, 256, 512],
            'num_queries': 20,
            'pixel_decoder': {'num_layers': 3},
            'decoder': {'num_layers': 6},
            'losses': {'points': {'num_points': 4096}},
        },
    }


def config(work_dir, iterations):
    scales = {'min_scale': 1.0, 'max_scale': 1.0, 'target_size': (SIDE, SIDE)}
    resize = {'type': 'mmseg_m2f.ResizeScale', **scales}
    load, pack = {'type': 'LoadImageFromFile'}, {'type': 'mmseg_m2f.PackSegments'}
    train = [load, {'type': 'mmseg_m2f.LoadSegments'}, resize, pack]
    by_iteration = {'by_epoch': False}
    warm_up = {'type': 'LinearLR', 'start_factor': 0.01, 'begin': 0, 'end': 30, **by_iteration}
    decay = {'type': 'PolyLR', 'power': 0.9, 'begin': 30, 'end': iterations + 1, **by_iteration}
    metrics = ('PanopticMetric', 'InstanceMetric', 'SemanticMetric')
    return Config(
        {
            'default_scope': 'mmdet',
            'custom_imports': {'imports': ['mmseg_m2f.adapters']},
            'model': model(),
            'train_dataloader': loader(len(IMAGES), train, 'InfiniteSampler'),
            'test_dataloader': loader(1, [load, resize, pack], 'DefaultSampler', test_mode=True),
            'test_evaluator': [{'type': f'mmseg_m2f.{name}'} for name in metrics],
            'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': iterations},
            'test_cfg': {'type': 'TestLoop'},
            'optim_wrapper': {
                'optimizer': {'type': 'AdamW', 'lr': 2e-3, 'weight_decay': 0.05},
                'clip_grad': {'max_norm': 0.1},
                'constructor': 'mmseg_m2f.Mask2FormerOptimWrapperConstructor',
                'paramwise_cfg': {'backbone_lr_mult': 1.0},
            },
            'param_scheduler': [warm_up, decay],
            'default_hooks': {'checkpoint': None, 'logger': {'type': 'LoggerHook', 'interval': 25}},
            'log_processor': by_iteration,
            'randomness': {'seed': 0},
            'work_dir': str(work_dir),
            'experiment_name': work_dir.name,
        }
    )


@pytest.mark.long
def test_a_panoptic_model_learns_four_images_by_heart(tmp_path):
    init_default_scope('mmdet')
    runner = Runner.from_cfg(config(tmp_path, iterations=100))
    runner.train()
    metrics = runner.test()
    assert metrics['coco_panoptic/PQ'] > 80
    assert metrics['coco/segm_mAP'] > 0.80
    assert metrics['mIoU'] > 80
