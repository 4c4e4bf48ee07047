"""Rows named ``_mmseg`` against MMSegmentation's own files."""

from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import init_default_scope

pytest.importorskip('mmseg')
import mmseg

from tests.configs.rows import SEMANTIC_ROWS, load, parse

SHIPPED = Path(mmseg.__file__).parent / '.mim/configs/mask2former'
MMSEG_ROWS = [row for row in SEMANTIC_ROWS if parse(row).is_mmseg]


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


@pytest.mark.parametrize('row', MMSEG_ROWS)
def test_mmseg_rows_are_what_mmseg_ships(row):
    if not SHIPPED.exists():
        pytest.skip('this MMSegmentation comes without its configurations')
    ours, theirs = load(row), shipped(row)
    assert with_defaults(ours.model.backbone) == with_defaults(theirs.model.backbone)
    # None says that nothing is padded for a test, as a missing key does.
    preprocessor = {k: v for k, v in ours.model.data_preprocessor.items() if v is not None}
    assert preprocessor == theirs.model.data_preprocessor
    assert ours.model.decode_head.num_classes == theirs.model.decode_head.num_classes
    assert theirs.model.decode_head.num_queries == 100
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        mine, other = ours[name], theirs[name]
        assert without_label_shift(mine.dataset.pipeline) == without_label_shift(
            other.dataset.pipeline
        )
        for key in ('type', 'data_root', 'data_prefix'):
            assert mine.dataset[key] == other.dataset[key]
        assert (mine.batch_size, mine.sampler) == (other.batch_size, other.sampler)
    assert ours.model.test_cfg == theirs.model.test_cfg
    for key in ('param_scheduler', 'train_cfg', 'val_evaluator'):
        assert ours[key] == theirs[key]
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
