"""Rows named ``_mmseg`` against MMSegmentation's own files."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from mmengine.optim import build_optim_wrapper

pytest.importorskip('mmseg')
import mmseg
import mmseg.models  # registers the backbones
from mmseg.registry import MODELS

from tests.configs.rows import SEMANTIC_ROWS, build, load, parse

SHIPPED = Path(mmseg.__file__).parent / '.mim/configs/mask2former'
MMSEG_ROWS = [row for row in SEMANTIC_ROWS if parse(row).is_mmseg]


def shipped(row: str) -> Config:
    """MMSegmentation's own file of this row."""
    name, dataset = row.removeprefix('mask2former_').removesuffix('_mmseg').split('_')
    name = {'swin-l': 'swin-l-in22k'}.get(name, name)
    name += '-384x384-pre' if '-in' in name else ''
    (path,) = SHIPPED.glob(f'mask2former_{name}_8xb2-*_{dataset}-*.py')
    return Config.fromfile(path)


def facts(cfg):
    """What a run depends on, with the defaults of classes written out."""
    backbone = cfg.model.backbone
    signature = inspect.signature(MODELS.get(backbone.type).__init__)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    loaders = [cfg[f'{name}_dataloader'] for name in ('train', 'val', 'test')]
    optimizer = {'eps': 1e-8, 'betas': (0.9, 0.999), **cfg.optim_wrapper.optimizer}
    return {
        'backbone': {**defaults, **backbone, 'init_cfg': None},
        'weights': backbone.init_cfg.checkpoint.rsplit('/', 1)[-1],
        # None says that nothing is padded for a test, as a missing key does.
        'preprocessor': {k: v for k, v in cfg.model.data_preprocessor.items() if v is not None},
        'head': (cfg.model.decode_head.num_classes, cfg.model.decode_head.get('num_queries', 100)),
        'loaders': [(loader.batch_size, loader.sampler) for loader in loaders],
        'data': [
            [loader.dataset[key] for key in ('type', 'data_root', 'data_prefix')]
            for loader in loaders
        ],
        # MMSegmentation says `reduce_zero_label` twice; the dataset's word is enough.
        'steps': [
            {key: value for key, value in step.items() if key != 'reduce_zero_label'}
            for loader in loaders
            for step in loader.dataset.pipeline
        ],
        'optimizer': (cfg.optim_wrapper.type, optimizer, cfg.optim_wrapper.clip_grad),
        'test': cfg.model.test_cfg,
        **{key: cfg[key] for key in ('param_scheduler', 'train_cfg', 'val_evaluator')},
    }


@pytest.mark.parametrize('row', MMSEG_ROWS)
def test_mmseg_rows_are_what_mmseg_ships(row):
    if not SHIPPED.exists():
        pytest.skip('this MMSegmentation comes without its configurations')
    assert facts(load(row)) == facts(shipped(row))


@pytest.mark.parametrize('row', ['mask2former_r50_ade20k_mmseg', 'mask2former_swin-t_ade20k_mmseg'])
@pytest.mark.filterwarnings('ignore')
def test_mmseg_s_multipliers_give_the_groups_of_our_constructor(row):
    pytest.importorskip('mmdet.models')
    theirs, ours = shipped(row), load(row).optim_wrapper.to_dict()
    model = build(theirs)
    expected = build_optim_wrapper(model, theirs.optim_wrapper.to_dict())
    groups, expected = (settings_of(model, w) for w in (build_optim_wrapper(model, ours), expected))
    # An embedding in mmseg's head that decays; in ours a bare parameter, which decays by rule.
    name = 'decode_head.pixel_decoder.level_encoding.weight'
    assert (groups.pop(name)[1], expected.pop(name)[1]) == (0.0, np.float32(0.05))
    assert groups == expected


def settings_of(model, optim_wrapper):
    names = {param: name for name, param in model.named_parameters() if param.requires_grad}
    return {
        names[param]: tuple(np.float32([group['lr'], group['weight_decay']]).tolist())
        for group in optim_wrapper.param_groups
        for param in group['params']
        if param in names
    }
