"""Instance and panoptic rows against the official configurations and numbers, typed anew."""

import copy
import re

import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

from mmseg_m2f import core
from mmseg_m2f.metadata import load_metadata
from tests.configs.rows import DETECTOR_ROWS, load, metafile_models, parse

# Row, queries, iterations, the published metrics as the metafile has them.
PUBLISHED = """
r50_coco-panoptic               100 368750  51.9 41.7 61.7
r101_coco-panoptic              100 368750  52.6 42.6 62.4
swin-t_coco-panoptic            100 368750  53.2 43.3 63.2
swin-s_coco-panoptic            100 368750  54.6 44.7 64.2
swin-b-in1k_coco-panoptic       100 368750  55.1 45.2 65.1
swin-b-in22k_coco-panoptic      100 368750  56.4 46.3 67.1
swin-l_coco-panoptic            200 737500  57.8 48.6 67.4
r50_coco-instance               100 368750  43.7 30.6
r101_coco-instance              100 368750  44.2 31.1
swin-t_coco-instance            100 368750  45.0 31.8
swin-s_coco-instance            100 368750  46.3 32.9
swin-b-in1k_coco-instance       100 368750  46.7 33.2
swin-b-in22k_coco-instance      100 368750  48.1 34.4
swin-l_coco-instance            200 737500  50.1 36.2
r50_cityscapes-panoptic         100  90000  62.1 37.3 77.5
r101_cityscapes-panoptic        100  90000  62.4 37.7 78.6
swin-t_cityscapes-panoptic      100  90000  63.9 39.1 80.5
swin-s_cityscapes-panoptic      100  90000  64.8 40.7 81.8
swin-b-in22k_cityscapes-panoptic 100 90000  66.1 42.8 82.7
swin-l_cityscapes-panoptic      200  90000  66.6 43.6 82.9
r50_cityscapes-instance         100  90000  37.4 61.9
r101_cityscapes-instance        100  90000  38.5 63.9
swin-t_cityscapes-instance      100  90000  39.7 66.9
swin-s_cityscapes-instance      100  90000  41.8 70.4
swin-b-in22k_cityscapes-instance 100 90000  42.0 68.8
swin-l_cityscapes-instance      200  90000  43.7 71.4
r50_ade20k-panoptic             100 160000  39.7 26.5 46.1
swin-l_ade20k-panoptic          200 160000  48.1 34.2 54.5
r50_ade20k-instance             100 160000  26.4
swin-l_ade20k-instance          200 160000  34.9
r50_mapillary-panoptic          100 300000  36.3 50.7
swin-l_mapillary-panoptic       200 300000  45.5 60.8
"""
TABLE = {
    f'mask2former_{name}': (int(queries), int(iterations), [float(m) for m in metrics])
    for name, queries, iterations, *metrics in map(str.split, PUBLISHED.split('\n')[1:-1])
}
MILESTONES = {368_750: [327_778, 355_092], 737_500: [655_556, 710_184]}
# Test size as (long, short); per data set.
TEST_SCALE = {
    'coco': (1333, 800),
    'cityscapes': (2048, 1024),
    'ade20k': (2560, 640),
    'mapillary': (2048, 2048),
}
# Short sides of training, limit of the long side, crop (height, width), padded to the crop.
JITTER = {
    'cityscapes': (
        '512 614 716 819 921 1024 1126 1228 1331 1433 1536 1638 1740 1843 1945 2048',
        4096,
        (512, 1024),
        False,
    ),
    'ade20k': (
        '320 384 448 512 576 640 704 768 832 896 960 1024 1088 1152 1216 1280',
        2560,
        (640, 640),
        True,
    ),
    'mapillary': (
        '1024 1228 1433 1638 1843 2048 2252 2457 2662 2867 3072 3276 3481 3686 3891 4096',
        8192,
        (1024, 1024),
        True,
    ),
}
NUM_CLASSES = {
    'coco-panoptic': 133,
    'coco-instance': 80,
    'cityscapes-panoptic': 19,
    'cityscapes-instance': 8,
    'ade20k-panoptic': 150,
    'ade20k-instance': 100,
    'mapillary-panoptic': 65,
}
# Semantic, instances, panoptic.
ALL, INSTANCES, NO_INSTANCES = (True, True, True), (False, True, False), (True, False, True)
# The main metric first: the best checkpoint is the best by it.
METRICS = {
    'coco-panoptic': ['PanopticMetric', 'InstanceMetric', 'SemanticMetric'],
    'coco-instance': ['InstanceMetric'],
    'cityscapes-panoptic': [
        'PanopticMetric',
        'CityscapesInstanceMetric',
        'InstanceMetric',
        'SemanticMetric',
    ],
    'cityscapes-instance': ['CityscapesInstanceMetric', 'InstanceMetric'],
    'ade20k-panoptic': ['PanopticMetric', 'InstanceMetric', 'SemanticMetric'],
    'ade20k-instance': ['InstanceMetric'],
    'mapillary-panoptic': ['PanopticMetric', 'SemanticMetric'],
}
BEST = {
    'PanopticMetric': 'coco_panoptic/PQ',
    'InstanceMetric': 'coco/segm_mAP',
    'CityscapesInstanceMetric': 'cityscapes/AP',
}
FROZEN = ({'type': 'BN', 'requires_grad': False}, True)
SYNC = ({'type': 'SyncBN', 'requires_grad': True}, False)
every_row = pytest.mark.parametrize('row', DETECTOR_ROWS)


def kind(row: str) -> str:
    return f'{parse(row).dataset}-{parse(row).task}'


def evaluators(cfg) -> list:
    return cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]


def test_the_table_has_every_row():
    assert sorted(TABLE) == DETECTOR_ROWS


@every_row
def test_queries_classes_and_published_numbers(row):
    queries, _, metrics = TABLE[row]
    head = load(row).model.panoptic_head
    assert head.get('num_queries', 100) == queries
    assert head.num_classes == NUM_CLASSES[kind(row)]
    assert list(metafile_models()[row]['Results'][0]['Metrics'].values()) == metrics


@every_row
def test_optimiser_and_schedule(row):
    cfg, (_, iterations, _) = load(row), TABLE[row]
    assert cfg.optim_wrapper.type == 'mmseg_m2f.AmpOptimWrapper'
    adamw = {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 0.05, 'fused': True}
    assert cfg.optim_wrapper.optimizer == adamw
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 0.01, 'norm_type': 2}
    assert cfg.optim_wrapper.paramwise_cfg == {'backbone_lr_mult': 0.1}
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_iters == iterations
    (schedule,) = cfg.param_scheduler
    assert not schedule.by_epoch
    if iterations in MILESTONES:
        assert (schedule.type, schedule.gamma) == ('MultiStepLR', 0.1)
        assert schedule.milestones == MILESTONES[iterations]
    else:
        assert (schedule.type, schedule.power, schedule.eta_min) == ('PolyLR', 0.9, 0.0)
        assert (schedule.get('begin', 0), schedule.end) == (0, iterations + 1)


@every_row
def test_backbone(row):
    name, dataset, _, _ = parse(row)
    backbone = load(row).model.backbone
    if backbone.type == 'ResNet':
        assert f'r{backbone.depth}' == name
        norm = SYNC if dataset == 'cityscapes' else FROZEN
        assert (backbone.norm_cfg, backbone.norm_eval) == norm
        assert backbone.init_cfg.checkpoint == f'torchvision://resnet{backbone.depth}'
        return
    weights = {
        'swin-t': 'swin_tiny_patch4_window7_224',
        'swin-s': 'swin_small_patch4_window7_224',
        'swin-b-in1k': 'swin_base_patch4_window12_384',
        'swin-b-in22k': 'swin_base_patch4_window12_384_22k',
        'swin-l': 'swin_large_patch4_window12_384_22k',
    }[name]
    assert backbone.init_cfg.checkpoint.endswith(f'/{weights}.pth')
    assert backbone.drop_path_rate == 0.3
    assert f'window{backbone.window_size}_{backbone.pretrain_img_size}' in weights


@every_row
def test_which_results_and_thresholds(row):
    cfg = load(row)
    config = core.PostprocessConfig(**cfg.model.test_cfg)
    results = ALL if parse(row).task == 'panoptic' else INSTANCES
    if kind(row) == 'mapillary-panoptic':
        results = NO_INSTANCES
    assert (config.semantic_on, config.instance_on, config.panoptic_on) == results
    assert config.object_mask_thr == (0.0 if kind(row) == 'mapillary-panoptic' else 0.8)
    assert (config.overlap_thr, config.score_thr, config.max_per_image) == (0.8, 0.0, 100)
    assert not config.non_overlap


@every_row
def test_metrics(row):
    cfg = load(row)
    assert cfg.val_evaluator == cfg.test_evaluator
    metrics = METRICS[kind(row)]
    assert [evaluator.type for evaluator in evaluators(cfg)] == [f'mmseg_m2f.{m}' for m in metrics]
    checkpoints = cfg.default_hooks.checkpoint
    assert (checkpoints.save_best, checkpoints.rule) == (BEST[metrics[0]], 'greater')


@every_row
def test_data_set_and_head_have_the_same_classes(row):
    cfg = load(row)
    names = {cfg[f'{name}_dataloader'].dataset.metadata for name in ('train', 'val', 'test')}
    (name,) = names
    metadata, head = load_metadata(name), cfg.model.panoptic_head
    assert len(metadata.classes) == head.num_classes
    assert list(metadata.thing_ids) == head.get('thing_ids', list(range(head.num_classes)))


def names_of(pipeline) -> list[str]:
    return [step['type'].removeprefix('mmseg_m2f.') for step in pipeline]


@every_row
def test_training_images(row):
    dataset = load(row).train_dataloader.dataset
    pipeline, name = dataset.pipeline, parse(row).dataset
    steps = dict(zip(names_of(pipeline), pipeline, strict=True))
    assert steps['RandomFlip'].prob == 0.5
    # Only COCO's instances leave out the emptied ones, and images without any.
    keeps = kind(row) != 'coco-instance'
    assert steps['PackSegments'].get('keep_empty', True) == keeps
    assert dataset.get('filter_empty', False) == (not keeps)
    if name == 'coco':
        order = 'LoadImageFromFile LoadSegments RandomFlip ResizeAndCrop PackSegments'
        assert list(steps) == order.split()
        resize, crop = steps['ResizeAndCrop'].resize, steps['ResizeAndCrop'].crop
        assert (resize.type, crop.type) == ('mmseg_m2f.ResizeScale', 'mmseg_m2f.FixedSizeCrop')
        assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
        assert resize.target_size == crop.crop_size == (1024, 1024)
        assert (crop.pad_value, crop.offsets) == (128, 'shared')
        return
    sides, max_size, crop_size, is_padded = JITTER[name]
    order = ['LoadImageFromFile', 'LoadSegments', 'ResizeAndCrop']
    order += ['PhotoMetricDistortion', 'RandomFlip', *['PadToSize'] * is_padded, 'PackSegments']
    assert list(steps) == order
    resize, crop = steps['ResizeAndCrop'].resize, steps['ResizeAndCrop'].crop
    assert resize.type == 'mmseg_m2f.ResizeShortestEdge'
    assert (resize.scale, resize.max_size) == ([int(s) for s in sides.split()], max_size)
    assert crop == {'type': 'mmseg_m2f.RandomCrop', 'crop_size': crop_size}
    if is_padded:
        assert (steps['PadToSize']['size'], steps['PadToSize'].pad_value) == (crop_size, 128)


@every_row
def test_test_images(row):
    cfg = load(row)
    assert cfg.val_dataloader == cfg.test_dataloader
    dataset = cfg.test_dataloader.dataset
    assert dataset.test_mode
    assert names_of(dataset.pipeline) == ['LoadImageFromFile', 'Resize', 'PackSegments']
    resize = dataset.pipeline[1]
    assert (resize.scale, resize.keep_ratio) == (TEST_SCALE[parse(row).dataset], True)
    assert resize.backend == 'pillow'


@pytest.mark.parametrize(
    ('dataset', 'size', 'expected'),
    [
        ('coco', (480, 640), (800, 1067)),
        ('coco', (426, 640), (800, 1202)),
        ('coco', (200, 640), (417, 1333)),
        ('cityscapes', (1024, 2048), (1024, 2048)),
        ('ade20k', (300, 400), (640, 853)),
        ('mapillary', (2448, 3264), (1536, 2048)),
    ],
)
def test_sizes_of_test_images(dataset, size, expected):
    init_default_scope('mmdet')
    pipeline = load(f'mask2former_r50_{dataset}-panoptic').test_dataloader.dataset.pipeline
    results = {'img': torch.zeros(*size, 3, dtype=torch.uint8).numpy(), 'img_shape': size}
    assert Compose(pipeline[1:2])(results)['img'].shape[:2] == expected


def test_ade20k_instances_are_the_same_with_the_other_results_on():
    """The official configuration has all on; ours only what is scored."""
    torch.manual_seed(0)
    prediction = torch.randn(20, 101) * 4, torch.randn(20, 12, 16)
    is_thing = torch.ones(100, dtype=torch.bool)
    geometry = core.ImageGeometry(padded=(48, 64), resized=(40, 60), original=(50, 75))
    settings = load('mask2former_r50_ade20k-instance').model.test_cfg
    results = []
    for config in (core.PostprocessConfig(**settings), core.PostprocessConfig()):
        restore = lambda masks: core.restore_masks(masks, geometry)  # noqa: E731
        results.append(core.instances(*prediction, restore, is_thing, config))
    ours, theirs = results
    assert len(ours.labels) == len(theirs.labels) == 100
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


OLD_NAMES = {
    'stages': 'layers',
    'attn.w_msa': 'attn',
    'ffn.layers.0.0': 'mlp.fc1',
    'ffn.layers.1': 'mlp.fc2',
    'patch_embed.projection': 'patch_embed.proj',
}


@pytest.mark.parametrize('name', ['swin-t', 'swin-s', 'swin-b-in1k', 'swin-b-in22k', 'swin-l'])
def test_mmdet_s_swin_takes_the_weights_of_the_original_file(name, tmp_path):
    """Its loader takes what fits and is silent about the rest."""
    init_default_scope('mmdet')
    backbone = copy.deepcopy(load(f'mask2former_{name}_coco-panoptic').model.backbone)
    backbone.update(embed_dims=4 * backbone.num_heads[0], depths=[1, 1, 1, 1])
    model = MODELS.build({**backbone, 'init_cfg': None})
    # Every weight holds a number of its own, under its name in the original file.
    numbers = {name: float(i) for i, (name, _) in enumerate(model.named_parameters())}
    weights = {}
    for key, value in model.named_parameters():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old)
        weights[key] = torch.full_like(value, len(weights))
    # The norms of the four outputs are no part of a classifier.
    weights = {key: value for key, value in weights.items() if not re.match(r'norm\d', key)}
    torch.save({'model': weights}, tmp_path / 'swin.pth')
    backbone.init_cfg.checkpoint = str(tmp_path / 'swin.pth')
    model = MODELS.build(backbone)
    model.init_weights()
    for key, value in model.named_parameters():
        if not re.match(r'norm\d', key):
            assert (value == numbers[key]).all(), key
