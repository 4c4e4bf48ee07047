"""Rows of all tasks against the official configurations and numbers, typed anew.

`tests/parity/test_schedules.py` has the schedules, `tests/parity/test_pipelines.py` the pixels.
"""

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
from mmseg.registry import DATASETS

from mmseg_m2f import core
from tests.configs.rows import KINDS, MAIN_NUMBER, ROWS, SEMANTIC_ROWS, load, parse
from tests.reduced import head_of

OFFICIAL = [row for row in ROWS if not parse(row).is_mmseg]
# Short sides of training by the short side of the test, as detectron2 lists them.
SHORT_SIDES = {
    512: '256 307 358 409 460 512 563 614 665 716 768 819 870 921 972 1024',
    640: '320 384 448 512 576 640 704 768 832 896 960 1024 1088 1152 1216 1280',
    1024: '512 614 716 819 921 1024 1126 1228 1331 1433 1536 1638 1740 1843 1945 2048',
    2048: '1024 1228 1433 1638 1843 2048 2252 2457 2662 2867 3072 3276 3481 3686 3891 4096',
}
MAX_SIZES = {512: 2048, 640: 2560, 1024: 4096, 2048: 8192}
CROPS = {512: (512, 512), 640: (640, 640), 1024: (512, 1024), 2048: (1024, 1024)}
# Long side of a test image by its short side.
LONG_SIDES = {512: 2048, 640: 2560, 800: 1333, 1024: 2048, 2048: 2048}
TTA_SHORT_SIDES = {
    512: [256, 384, 512, 640, 768, 896],
    640: [320, 480, 640, 800, 960, 1120],
    1024: [512, 768, 1024, 1280, 1536, 1792],
    # Not published: the factors of the others.
    2048: [1024, 1536, 2048, 2560, 3072, 3584],
}
FROZEN = ({'type': 'BN', 'requires_grad': False}, True)
SYNC = ({'type': 'SyncBN', 'requires_grad': True}, False)
SWIN_WEIGHTS = {
    'swin-t': 'swin_tiny_patch4_window7_224',
    'swin-s': 'swin_small_patch4_window7_224',
    'swin-b-in1k': 'swin_base_patch4_window12_384',
    'swin-b-in22k': 'swin_base_patch4_window12_384_22k',
    'swin-l': 'swin_large_patch4_window12_384_22k',
}
every_row = pytest.mark.parametrize('row', ROWS)
every_official_row = pytest.mark.parametrize('row', OFFICIAL)


def short_side(row):
    name, dataset, task, _ = parse(row)
    if dataset == 'ade20k':
        return 640 if task != 'semantic' or name.startswith(('swin-b', 'swin-l')) else 512
    return {'coco': 800, 'cityscapes': 1024, 'mapillary': 2048}[dataset]


@every_official_row
def test_optimizer(row):
    cfg = load(row)
    assert cfg.optim_wrapper.type == 'mmseg_m2f.AmpOptimWrapper'
    adamw = {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 0.05, 'fused': True}
    assert cfg.optim_wrapper.optimizer == adamw
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 0.01, 'norm_type': 2}
    assert cfg.optim_wrapper.paramwise_cfg == {'backbone_lr_mult': 0.1}
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16


@every_official_row
def test_backbone(row):
    name, dataset, _, _ = parse(row)
    backbone = load(row).model.backbone
    weights = backbone.init_cfg.checkpoint
    if backbone.type == 'ResNet':
        is_trained = dataset == 'cityscapes' or row == 'mask2former_r101_ade20k'
        assert f'r{backbone.depth}' == name
        assert (backbone.norm_cfg, backbone.norm_eval) == (SYNC if is_trained else FROZEN)
        assert weights == f'torchvision://resnet{backbone.depth}'
        return
    # mmseg's copies carry a date.
    assert weights.rsplit('/', 1)[1].removesuffix('.pth').split('_2022')[0] == SWIN_WEIGHTS[name]
    assert backbone.drop_path_rate == 0.3
    assert f'window{backbone.window_size}_{backbone.pretrain_img_size}' in weights


@every_row
def test_the_head_holds_only_what_differs(row):
    name, dataset, task, _ = parse(row)
    cfg, (num_classes, _) = load(row), KINDS[parse(row).kind]
    head = head_of(cfg)
    own = {'num_classes': num_classes}
    if task == 'panoptic':
        own['thing_ids'] = head.thing_ids  # the check before a run compares them with the data
    if task != 'semantic' and name == 'swin-l':
        own['num_queries'] = 200
    if dataset == 'mapillary' and task == 'semantic':
        own['ignore_index'] = cfg.model.data_preprocessor.seg_pad_val
        data = DATASETS.build({**cfg.val_dataloader.dataset, 'pipeline': [], 'lazy_init': True})
        assert data.ignore_index == cfg.val_evaluator.ignore_index == head.ignore_index == 65
    assert head == {'type': head.type, **own}


@every_row
def test_results_and_metrics(row):
    cfg, (_, metrics) = load(row), KINDS[parse(row).kind]
    assert cfg.val_evaluator == cfg.test_evaluator
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    assert [evaluator.type.removeprefix('mmseg_m2f.') for evaluator in evaluators] == metrics
    checkpoints = cfg.default_hooks.checkpoint
    assert checkpoints.save_best == MAIN_NUMBER[metrics[0]]
    assert checkpoints.get('rule', 'greater') == 'greater'
    _, dataset, task, _ = parse(row)
    if task == 'semantic':
        return
    is_panoptic, is_mapillary = task == 'panoptic', dataset == 'mapillary'
    assert core.PostprocessConfig(**cfg.model.test_cfg) == core.PostprocessConfig(
        semantic_on=is_panoptic,
        instance_on=not is_mapillary,
        panoptic_on=is_panoptic,
        object_mask_thr=0.0 if is_mapillary else 0.8,
        overlap_thr=0.8,
        score_thr=0.0,
        max_per_image=100,
        non_overlap=False,
    )


def training_steps(row):
    """Cityscapes alone has no padding: its images are never smaller than the crop."""
    load_labels, flip, pad, pack = 'LoadAnnotations', 'RandomFlip', 'Pad', 'PackSegInputs'
    if parse(row).task != 'semantic':
        names = ('LoadSegments', 'RandomFlip', 'PadToSize', 'PackSegments')
        load_labels, flip, pad, pack = (f'mmseg_m2f.{name}' for name in names)
    steps = ['mmseg_m2f.ResizeAndCrop', 'mmseg_m2f.PhotoMetricDistortion', flip, pad]
    if parse(row).dataset == 'coco':
        steps = [flip, 'mmseg_m2f.ResizeAndCrop']
    elif parse(row).dataset == 'cityscapes':
        steps.remove(pad)
    return ['LoadImageFromFile', load_labels, *steps, pack]


@every_official_row
def test_training_images(row):
    dataset, side = load(row).train_dataloader.dataset, short_side(row)
    assert [step['type'] for step in dataset.pipeline] == training_steps(row)
    # Only instances of COCO leave out emptied ones, and images without any.
    keeps = parse(row).kind != 'coco-instance'
    assert dataset.pipeline[-1].get('keep_empty', True) == keeps
    assert dataset.get('filter_empty', False) == (not keeps)
    steps = {step['type'].removeprefix('mmseg_m2f.'): step for step in dataset.pipeline}
    assert steps['RandomFlip'].prob == 0.5
    resize, crop = steps['ResizeAndCrop'].resize, steps['ResizeAndCrop'].crop
    if side == 800:
        assert (resize.type, crop.type) == ('mmseg_m2f.ResizeScale', 'mmseg_m2f.FixedSizeCrop')
        assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
        assert resize.target_size == crop.crop_size == (1024, 1024)
        assert (crop.pad_value, crop.offsets) == (128, 'shared')
        return
    assert resize.type == 'mmseg_m2f.ResizeShortestEdge'
    assert resize.scale == [int(size) for size in SHORT_SIDES[side].split()]
    assert resize.max_size == MAX_SIZES[side]
    assert crop == {'type': 'mmseg_m2f.RandomCrop', 'crop_size': CROPS[side]}
    if 'Pad' in steps:
        ignored = 65 if side == 2048 else 255
        assert steps['Pad']['size'] == CROPS[side][::-1]
        assert steps['Pad'].pad_val == {'img': 128, 'seg': ignored}
    if 'PadToSize' in steps:
        assert (steps['PadToSize']['size'], steps['PadToSize'].pad_value) == (CROPS[side], 128)
    if parse(row).task == 'semantic':
        assert load(row).model.data_preprocessor.size == CROPS[side]


@every_row
def test_test_images(row):
    cfg, side = load(row), short_side(row)
    assert cfg.val_dataloader == cfg.test_dataloader
    pipeline = cfg.test_dataloader.dataset.pipeline
    names = ['LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackSegInputs']
    if parse(row).task != 'semantic':
        assert cfg.test_dataloader.dataset.test_mode
        names = ['LoadImageFromFile', 'Resize', 'mmseg_m2f.PackSegments']
    assert [step['type'] for step in pipeline] == names
    backend = {} if parse(row).is_mmseg else {'backend': 'pillow'}
    scale = (LONG_SIDES[side], side)
    assert pipeline[1] == {'type': 'Resize', 'scale': scale, 'keep_ratio': True, **backend}


@pytest.mark.parametrize('row', SEMANTIC_ROWS)
def test_views_of_test_time_augmentation(row):
    cfg, side = load(row), short_side(row)
    # The official protocol augments the image as resized for the test.
    assert cfg.tta_pipeline[1] == cfg.test_dataloader.dataset.pipeline[1]
    resizes, flips, labels, _ = cfg.tta_pipeline[2].transforms
    limit = {512: 3584, 640: 4480, 1024: 4096}.get(side)
    scales = [(limit or size, size) for size in TTA_SHORT_SIDES[side]]
    assert [step.scale for step in resizes] == scales
    assert [step.prob for step in flips] == [0.0, 1.0]
    assert labels == [{'type': 'mmseg_m2f.LoadAnnotationsIfAny'}]
