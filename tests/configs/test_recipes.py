"""Official rows of all tasks against the official numbers, typed anew."""

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

pytest.importorskip('mmseg')
from mmseg.registry import DATASETS

from tests.configs.rows import ROWS, SEMANTIC_ROWS, load, parse

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
every_row = pytest.mark.parametrize('row', OFFICIAL)


def short_side(row: str) -> int:
    name, dataset, task, _ = parse(row)
    if dataset == 'ade20k':
        return 640 if task != 'semantic' or name.startswith(('swin-b', 'swin-l')) else 512
    return {'coco': 800, 'cityscapes': 1024, 'mapillary': 2048}[dataset]


@every_row
def test_optimiser(row):
    """The schedule has a test beside the official formulas."""
    cfg = load(row)
    assert cfg.optim_wrapper.type == 'mmseg_m2f.AmpOptimWrapper'
    adamw = {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 0.05, 'fused': True}
    assert cfg.optim_wrapper.optimizer == adamw
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 0.01, 'norm_type': 2}
    assert cfg.optim_wrapper.paramwise_cfg == {'backbone_lr_mult': 0.1}
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16


@every_row
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


def training_steps(row: str) -> list[str]:
    """Cityscapes alone has no padding: its images are never smaller than the crop."""
    ours, is_semantic = 'mmseg_m2f.', parse(row).task == 'semantic'
    load_labels = 'LoadAnnotations' if is_semantic else f'{ours}LoadSegments'
    flip = 'RandomFlip' if is_semantic else f'{ours}RandomFlip'
    pad = ['Pad' if is_semantic else f'{ours}PadToSize'] * (parse(row).dataset != 'cityscapes')
    pack = 'PackSegInputs' if is_semantic else f'{ours}PackSegments'
    steps = [f'{ours}ResizeAndCrop', f'{ours}PhotoMetricDistortion', flip, *pad]
    if parse(row).dataset == 'coco':
        steps = [flip, f'{ours}ResizeAndCrop']
    return ['LoadImageFromFile', load_labels, *steps, pack]


@every_row
def test_training_images(row):
    pipeline, side = load(row).train_dataloader.dataset.pipeline, short_side(row)
    assert [step['type'] for step in pipeline] == training_steps(row)
    steps = {step['type'].removeprefix('mmseg_m2f.'): step for step in pipeline}
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
        pad, ignored = steps['Pad'], 65 if side == 2048 else 255
        assert (pad['size'], pad.pad_val) == (CROPS[side][::-1], {'img': 128, 'seg': ignored})
    if 'PadToSize' in steps:
        pad = steps['PadToSize']
        assert (pad['size'], pad.pad_value) == (CROPS[side], 128)
    if parse(row).task == 'semantic':
        assert load(row).model.data_preprocessor.size == CROPS[side]


@pytest.mark.parametrize('row', ROWS)
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
    resizes, flips, *_ = cfg.tta_pipeline[2].transforms
    limit = {512: 3584, 640: 4480, 1024: 4096}.get(side)
    assert [step.scale for step in resizes] == [
        (limit or size, size) for size in TTA_SHORT_SIDES[side]
    ]
    assert [step.prob for step in flips] == [0.0, 1.0]


def test_views_of_an_image_without_ground_truth(tmp_path):
    init_default_scope('mmseg')
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(tmp_path / 'a.png')
    pipeline = Compose(load('mask2former_r50_ade20k').tta_pipeline)
    views = pipeline({'img_path': str(tmp_path / 'a.png')})
    sizes = [tuple(view.shape[1:]) for view in views['inputs']]
    # Twice as wide as high; each size as it is and mirrored.
    assert sizes == [(side, 2 * side) for side in TTA_SHORT_SIDES[512] for _ in range(2)]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 6
    assert all(sample.ori_shape == (300, 600) for sample in views['data_samples'])


@pytest.mark.parametrize('row', [row for row in OFFICIAL if row.endswith('_mapillary')])
def test_mapillary_s_label_of_no_class_is_65_everywhere(row):
    cfg = load(row)
    assert cfg.model.decode_head.ignore_index == cfg.model.data_preprocessor.seg_pad_val == 65
    assert cfg.val_evaluator.ignore_index == cfg.test_evaluator.ignore_index == 65
    dataset = DATASETS.build({**cfg.train_dataloader.dataset.to_dict(), 'lazy_init': True})
    assert dataset.ignore_index == 65
    assert len(dataset.metainfo['classes']) == cfg.model.decode_head.num_classes == 65
