"""Register our parts under the stock names, so that configs of mmseg and mmdet stay as they are."""

import copy
import importlib
import inspect
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from torch import nn

from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.migrate import stock_head
from mmseg_m2f.adapters.models.lazy import build_detector, import_for

_TRAIN = ('num_points', 'oversample_ratio', 'importance_sample_ratio', 'assigner', 'sampler')
# What the stock head and fusion head have if the config does not say.
_CLASSES = {'num_things_classes': 80, 'num_stuff_classes': 53}


def build_semantic_head(**stock: Any) -> nn.Module:
    """Build our decode head from the arguments of mmseg's ``Mask2FormerHead``."""
    return _build_head('mmseg', stock)


def build_universal_head(**stock: Any) -> nn.Module:
    """Build our head from the arguments of mmdet's ``Mask2FormerHead``."""
    return _build_head('mmdet', stock)


def build_stock_detector(**stock: Any) -> nn.Module:
    """Build our detector from the arguments of mmdet's ``Mask2Former``.

    Raises:
        ValueError: a setting of the detector or of its fusion head that ours cannot follow.
    """
    test, train = stock.pop('test_cfg', None) or {}, stock.pop('train_cfg', None)
    fusion, head = stock.pop('panoptic_fusion_head', None) or {}, stock.get('panoptic_head') or {}
    if head.get('type') in ('Mask2FormerHead', 'mmdet.Mask2FormerHead'):
        _check_fusion_head(fusion, head)
        switch = {'panoptic_mask_intersection': test.get('filter_low_score', False)}
        stock['panoptic_head'] = {
            **head,
            'train_cfg': train or head.get('train_cfg'),
            'compat': {**switch, **(head.get('compat') or {})},
        }
    ours = {key: test[key] for key in test if key not in ('iou_thr', 'filter_low_score')}
    return build_detector(**stock, test_cfg={**stock_head.read_results(test), **ours})


_SHADOWS: dict[str, dict[str, Any]] = {
    'mmseg': {'Mask2FormerHead': build_semantic_head},
    'mmdet': {'Mask2FormerHead': build_universal_head, 'Mask2Former': build_stock_detector},
}


def shadow() -> None:
    """Register our parts under the names of the stock ones, in mmseg and mmdet if installed.

    This lasts until the process ends.

    Raises:
        ImportError: neither mmseg nor mmdet can be imported.
    """
    failures: list[str] = []
    for package, parts in _SHADOWS.items():
        try:
            # The stock classes register themselves first: later they would find the names taken.
            importlib.import_module(f'{package}.models')
        except (ImportError, AssertionError) as error:  # both assert the version of mmcv
            failures.append(f'{package} cannot be imported ({error})')
            if find_spec(package) is not None:
                line = f'mmseg_m2f.dropin: {failures[-1]}. Its names stay the stock ones.'
                print_log(line, logger='current', level=logging.WARNING)
            continue
        registry = importlib.import_module(f'{package}.registry').MODELS
        for name, part in parts.items():
            registry.register_module(name=name, module=part, force=True)
    if len(failures) == len(_SHADOWS):
        raise ImportError(f'mmseg_m2f.dropin needs mmseg or mmdet: {", ".join(failures)}')


def _build_head(package: str, given: dict[str, Any]) -> nn.Module:
    """Build the stock head, read it, and build ours; the stock head is dropped.

    Raises:
        ValueError: the stock head does not take a setting, or our parts cannot follow it.
    """
    config = ConfigDict(copy.deepcopy(given))
    compat = config.pop('compat', None)
    name = 'decode_head' if package == 'mmseg' else 'panoptic_head'
    try:
        stock = _build_stock_head(package, config)
        settings = {**stock_head.read_losses(stock, config), 'init_cfg': config.get('init_cfg')}
        ours = stock_head.build_ours(stock, compat=compat, **settings)
        stock_head.pair_parameters(ours, stock)
    except ValueError as error:
        raise ValueError(
            f'{name}: {error}. Change the config, or keep the stock head: leave mmseg_m2f.dropin '
            'out.'
        ) from error
    return ours


def _build_stock_head(package: str, config: ConfigDict) -> Any:
    advice = 'mmseg_m2f.dropin reads the stock head: pip install onedl-mmdetection or mmdet.'
    mmdet_heads = import_for('MMDetection', 'mmdet.models', advice)
    heads = importlib.import_module('mmseg.models') if package == 'mmseg' else mmdet_heads
    signatures = [inspect.signature(m.Mask2FormerHead).parameters for m in (heads, mmdet_heads)]
    # The stock heads take any key, and leave out what they do not know.
    known = {'num_classes', 'strides'}.union(*signatures) - {'kwargs'}
    check_keys('the head', config, sorted(known))
    check_keys('train_cfg', config.get('train_cfg') or {}, _TRAIN)
    try:
        config.get('loss_cls', {}).setdefault('class_weight', None)
        # The user's random numbers stay what they are.
        with torch.random.fork_rng(devices=[]):
            head = heads.Mask2FormerHead(**config)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'the stock head fails with {type(error).__name__}: {error}') from error
    if config.get('num_classes', head.num_classes) != head.num_classes:
        raise ValueError(
            f'num_classes is {config.num_classes}, but things and stuff are '
            f'{head.num_things_classes} and {head.num_stuff_classes}'
        )
    for name, value in head.named_parameters():
        if not value.requires_grad:
            raise ValueError(f'{name} of the head has requires_grad=False, our parts are trained')
    return head


def _check_fusion_head(fusion: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    """Check that our detector does what the fusion head does, which has no weights."""
    ours = {key: head.get(key, default) for key, default in _CLASSES.items()}
    ours |= {'type': 'MaskFormerFusionHead', 'loss_panoptic': None}
    check_keys('panoptic_fusion_head', fusion, [*ours, 'test_cfg', 'init_cfg'])
    for key, value in fusion.items():
        if key in ours and value not in (ours[key], f'mmdet.{ours[key]}'):
            raise ValueError(
                f'panoptic_fusion_head.{key} is {value!r}, our parts have {ours[key]!r} only. '
                'Set it so, or leave mmseg_m2f.dropin out.'
            )
