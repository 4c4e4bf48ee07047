"""The two recipes, against the official numbers and against MMSegmentation's own files."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine import Config
from mmengine.registry import init_default_scope
from PIL import Image

pytest.importorskip('mmseg')
import mmseg
from mmseg.registry import DATASETS

from tests.configs.rows import SEMANTIC_ROWS, load, parse

SHIPPED = Path(mmseg.__file__).parent / '.mim/configs/mask2former'
OFFICIAL = [row for row in SEMANTIC_ROWS if not row.endswith('_mmseg')]
# Integers of detectron2's list; crop (h, w); long side in training; test; test-time augmentation.
SHORT_SIDES = {
    512: '256 307 358 409 460 512 563 614 665 716 768 819 870 921 972 1024',
    640: '320 384 448 512 576 640 704 768 832 896 960 1024 1088 1152 1216 1280',
    1024: '512 614 716 819 921 1024 1126 1228 1331 1433 1536 1638 1740 1843 1945 2048',
    2048: '1024 1228 1433 1638 1843 2048 2252 2457 2662 2867 3072 3276 3481 3686 3891 4096',
}
TTA_SHORT_SIDES = {
    512: [256, 384, 512, 640, 768, 896],
    640: [320, 480, 640, 800, 960, 1120],
    1024: [512, 768, 1024, 1280, 1536, 1792],
    # Not published: the factors of the others.
    2048: [1024, 1536, 2048, 2560, 3072, 3584],
}
FROZEN = {'type': 'BN', 'requires_grad': False}
SYNC = {'type': 'SyncBN', 'requires_grad': True}
NORMS = {
    'mask2former_r50_ade20k': (FROZEN, True),
    'mask2former_r101_ade20k': (SYNC, False),
    'mask2former_r50_cityscapes': (SYNC, False),
    'mask2former_r101_cityscapes': (SYNC, False),
    'mask2former_r50_mapillary': (FROZEN, True),
}


def short_side(row: str) -> int:
    dataset = parse(row).dataset
    if dataset != 'ade20k':
        return {'cityscapes': 1024, 'mapillary': 2048}[dataset]
    return 640 if 'swin-b' in row or 'swin-l' in row else 512


def transform(pipeline, name):
    found = [step for step in pipeline if step['type'] == name]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize('row', OFFICIAL)
def test_official_training_images(row):
    cfg, side = load(row), short_side(row)
    pipeline = cfg.train_dataloader.dataset.pipeline
    step = transform(pipeline, 'mmseg_m2f.ResizeAndCrop')
    resize = step.resize
    assert resize.type == 'mmseg_m2f.ResizeShortestEdge'
    assert resize.scale == [int(size) for size in SHORT_SIDES[side].split()]
    assert resize.max_size == {512: 2048, 640: 2560, 1024: 4096, 2048: 8192}[side]
    crop = {1024: (512, 1024), 2048: (1024, 1024)}.get(side, (side, side))
    assert step.crop == {'type': 'mmseg_m2f.RandomCrop', 'crop_size': crop}
    assert transform(pipeline, 'RandomFlip').prob == 0.5
    assert cfg.model.data_preprocessor.size == crop
    if side != 1024:
        pad = transform(pipeline, 'Pad')
        ignored = 65 if side == 2048 else 255
        assert (pad['size'], pad.pad_val) == (crop[::-1], {'img': 128, 'seg': ignored})
    assert cfg.train_dataloader.batch_size == 2


@pytest.mark.parametrize('row', SEMANTIC_ROWS)
def test_test_images(row):
    cfg, side = load(row), short_side(row)
    long_side = {512: 2048, 640: 2560, 1024: 2048, 2048: 2048}[side]
    assert cfg.val_dataloader == cfg.test_dataloader
    resize = transform(cfg.test_dataloader.dataset.pipeline, 'Resize')
    assert (resize.scale, resize.keep_ratio) == ((long_side, side), True)
    augmented = transform(cfg.tta_pipeline, 'TestTimeAug').transforms
    limit = {512: 3584, 640: 4480, 1024: 4096}.get(side)
    assert [step.scale for step in augmented[0]] == [
        (limit or size, size) for size in TTA_SHORT_SIDES[side]
    ]
    assert [step.prob for step in augmented[1]] == [0.0, 1.0]
    # The official protocol augments the image as resized for the test.
    assert cfg.tta_pipeline[1] == resize


def test_views_of_a_image_without_ground_truth(tmp_path):
    init_default_scope('mmseg')
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(tmp_path / 'a.png')
    pipeline = Compose(load('mask2former_r50_ade20k').tta_pipeline)
    views = pipeline({'img_path': str(tmp_path / 'a.png')})
    sizes = [tuple(view.shape[1:]) for view in views['inputs']]
    # Twice as wide as high; each size as it is and mirrored.
    assert sizes == [(side, 2 * side) for side in TTA_SHORT_SIDES[512] for _ in range(2)]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 6
    assert all(sample.ori_shape == (300, 600) for sample in views['data_samples'])


@pytest.mark.parametrize('row', OFFICIAL)
def test_official_optimiser_and_schedule(row):
    cfg = load(row)
    adamw = {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 0.05, 'fused': True}
    assert cfg.optim_wrapper.optimizer == adamw
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 0.01, 'norm_type': 2}
    assert cfg.optim_wrapper.type == 'mmseg_m2f.AmpOptimWrapper'
    iterations = {'ade20k': 160_000, 'cityscapes': 90_000, 'mapillary': 300_000}[parse(row).dataset]
    assert cfg.train_cfg.max_iters == iterations
    (schedule,) = cfg.param_scheduler
    assert (schedule.power, schedule.eta_min, schedule.end) == (0.9, 0.0, iterations + 1)


@pytest.mark.parametrize('row', OFFICIAL)
def test_official_backbone(row):
    backbone = load(row).model.backbone
    if row in NORMS:
        assert (backbone.norm_cfg, backbone.norm_eval) == NORMS[row]
    else:
        assert backbone.drop_path_rate == 0.3
        assert backbone.window_size == (12 if 'swin-b' in row or 'swin-l' in row else 7)


@pytest.mark.parametrize('row', [row for row in OFFICIAL if 'mapillary' in row])
def test_mapillary_s_label_of_no_class_is_65_everywhere(row):
    cfg = load(row)
    assert cfg.model.decode_head.ignore_index == cfg.model.data_preprocessor.seg_pad_val == 65
    assert cfg.val_evaluator.ignore_index == cfg.test_evaluator.ignore_index == 65
    dataset = DATASETS.build({**cfg.train_dataloader.dataset.to_dict(), 'lazy_init': True})
    assert dataset.ignore_index == 65
    assert len(dataset.metainfo['classes']) == cfg.model.decode_head.num_classes == 65


def shipped(row: str) -> Config:
    """MMSegmentation's own file of this row."""
    name, dataset = row.removeprefix('mask2former_').removesuffix('_mmseg').split('_')
    name = {'swin-l': 'swin-l-in22k'}.get(name, name)
    name += '-384x384-pre' if '-in' in name else ''
    (path,) = SHIPPED.glob(f'mask2former_{name}_8xb2-*_{dataset}-*.py')
    return Config.fromfile(path)


def with_defaults(backbone):
    """A backbone's settings with those that its class has anyway, and the weights' file name."""
    defaults = {
        'ResNet': {'deep_stem': False, 'num_stages': 4, 'style': 'pytorch', 'norm_eval': False},
        'SwinTransformer': {
            'mlp_ratio': 4,
            'qkv_bias': True,
            'qk_scale': None,
            'drop_rate': 0.0,
            'attn_drop_rate': 0.0,
            'patch_norm': True,
            'with_cp': False,
            'pretrain_img_size': 224,
        },
    }[backbone['type']]
    common = {'out_indices': (0, 1, 2, 3), 'frozen_stages': -1}
    weights = backbone['init_cfg']['checkpoint'].rsplit('/', 1)[-1]
    return {**defaults, **common, **backbone, 'init_cfg': weights}


def without_label_shift(pipeline):
    """MMSegmentation says ``reduce_zero_label`` twice; the dataset's word is enough."""
    return [{k: v for k, v in step.items() if k != 'reduce_zero_label'} for step in pipeline]


@pytest.mark.parametrize('row', sorted(set(SEMANTIC_ROWS) - set(OFFICIAL)))
def test_mmseg_rows_are_what_mmseg_ships(row):
    if not SHIPPED.exists():
        pytest.skip('this MMSegmentation comes without its configurations')
    ours, theirs = load(row), shipped(row)
    assert with_defaults(ours.model.backbone) == with_defaults(theirs.model.backbone)
    # None says that nothing is padded for a test, as a missing key does.
    preprocessor = {k: v for k, v in ours.model.data_preprocessor.items() if v is not None}
    assert preprocessor == theirs.model.data_preprocessor
    assert ours.model.test_cfg == theirs.model.test_cfg
    assert ours.model.decode_head.num_classes == theirs.model.decode_head.num_classes
    assert theirs.model.decode_head.num_queries == 100
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        mine, other = ours[name], theirs[name]
        assert without_label_shift(mine.dataset.pipeline) == without_label_shift(
            other.dataset.pipeline
        )
        assert mine.dataset.data_prefix == other.dataset.data_prefix
        assert (mine.dataset.type, mine.dataset.data_root, mine.batch_size, mine.sampler) == (
            other.dataset.type,
            other.dataset.data_root,
            other.batch_size,
            other.sampler,
        )
    assert ours.param_scheduler == theirs.param_scheduler
    assert ours.train_cfg == theirs.train_cfg
    assert ours.val_evaluator == theirs.val_evaluator
    assert ours.optim_wrapper.type == theirs.optim_wrapper.type == 'OptimWrapper'
    assert ours.optim_wrapper.clip_grad == theirs.optim_wrapper.clip_grad
    torch_defaults = {'eps': 1e-8, 'betas': (0.9, 0.999)}
    assert {**torch_defaults, **ours.optim_wrapper.optimizer} == theirs.optim_wrapper.optimizer


@pytest.mark.parametrize('row', ['mask2former_r50_ade20k_mmseg', 'mask2former_swin-t_ade20k_mmseg'])
@pytest.mark.filterwarnings('ignore')
def test_mmseg_s_multipliers_give_the_groups_of_our_constructor(row):
    pytest.importorskip('mmdet.models')
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmseg.registry import MODELS

    from mmseg_m2f.adapters.training.optimizer import Mask2FormerOptimWrapperConstructor
    from tests.configs.test_rows import no_initialisation

    init_default_scope('mmseg')
    ours, theirs = load(row).optim_wrapper.to_dict(), shipped(row)
    with no_initialisation():
        model = MODELS.build(theirs.model)
    wrapper = theirs.optim_wrapper.to_dict()
    mults = wrapper.pop('paramwise_cfg')
    expected = DefaultOptimWrapperConstructor(wrapper, mults)(model)
    ours.pop('constructor')
    constructor = Mask2FormerOptimWrapperConstructor(ours, ours.pop('paramwise_cfg'))
    groups, expected = settings_of(model, constructor(model)), settings_of(model, expected)
    # An embedding in mmseg's head that decays; in ours a bare parameter, which decays by rule.
    name = 'decode_head.pixel_decoder.level_encoding.weight'
    assert (groups.pop(name)[1], expected.pop(name)[1]) == (0.0, np.float32(0.05))
    assert groups == expected


def settings_of(model, optim_wrapper) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    return {
        names[id(p)]: tuple(np.float32([group['lr'], group['weight_decay']]).tolist())
        for group in optim_wrapper.param_groups
        for p in group['params']
        if id(p) in names
    }
