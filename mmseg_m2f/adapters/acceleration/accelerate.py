"""Built Mask2Formers of MMSegmentation and MMDetection, computed by our parts; the hook for it."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg_m2f.adapters.acceleration import (
    CannotAccelerateError,
    Twin,
    is_accelerated,
    replace_methods,
    restore,
)
from mmseg_m2f.adapters.acceleration.methods import (
    DetectorMethods,
    SemanticMethods,
    UniversalMethods,
    postprocess_config,
)
from mmseg_m2f.adapters.acceleration.parts import check_modules, kind_of
from mmseg_m2f.adapters.acceleration.settings import KNOWN, NETWORK, loss_settings, network_settings
from mmseg_m2f.adapters.inference.autocast import autocast_of
from mmseg_m2f.adapters.migrate import stock_settings as stock_configs
from mmseg_m2f.adapters.models.decode_head import Mask2FormerHead
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.models.universal_head import Mask2FormerUniversalHead
from mmseg_m2f.checkpoints import HEADS, to_ours
from mmseg_m2f.cpu.speed_up import faster_forwards
from mmseg_m2f.registry import HOOKS

__all__ = ['AccelerateHook', 'accelerate_openmmlab', 'is_accelerated', 'restore']

_HEADS = {'mmseg.Mask2FormerHead': 'mmseg', 'mmdet.Mask2FormerHead': 'mmdet'}
_DETECTOR = ('mmdet.Mask2Former', 'mmdet.MaskFormerFusionHead')
# The losses of these heads are mmdet's; what the images' pipelines drop is gone already.
_COMPAT = {'num_masks_mode': 'mmdet', 'keep_empty_gt': True}


def accelerate_openmmlab(model: nn.Module, points: str = 'shared') -> None:
    """Let the head of a segmentor or detector compute with our parts, on its own parameters.

    Raises:
        CannotAccelerateError: what of the model our parts cannot do.
    """
    name, head = _stock_head(model)
    stock = {part: getattr(head, part) for part in NETWORK}
    check_modules({f'{name}.{part}': module for part, module in stock.items()}, KNOWN)
    try:
        ours, why_stock_losses = _build(head, points)
    except ValueError as error:
        raise CannotAccelerateError(str(error).partition('. Set it so')[0]) from None
    twin = Twin(ours, (name, head), stock, _weights(name, stock), _say)
    is_semantic = _HEADS[kind_of(head)] == 'mmseg'
    methods: Any = (SemanticMethods if is_semantic else UniversalMethods)(head, twin)
    replaced = {'forward': methods.forward, 'predict': methods.predict}
    if why_stock_losses is None:
        replaced['loss'] = methods.loss
    else:
        _say(f'accelerate: the losses and the matching stay the stock ones, {why_stock_losses}')
    detector = None if is_semantic else _detector_methods(model, head, twin)
    if detector is not None and autocast_of(model) is not None:
        raise CannotAccelerateError(
            'prepare_inference has put predict under an autocast, which would be lost: accelerate '
            'goes first, of a model built anew or after prepare_inference(model) without dtype'
        )
    replace_methods(head, **replaced, resolved_config=ours.resolved_config)
    backbone: Any = model.backbone
    for module, forward in faster_forwards(backbone):
        replace_methods(module, forward=forward)
    if detector is not None:
        replace_methods(model, predict=detector.predict)


@HOOKS.register_module()
class AccelerateHook(Hook):
    """``mmseg_m2f.accelerate`` on the model of a run, before it trains, validates or tests.

    The parameters stay the same objects, so that an optimiser built before goes on with them.

    Args:
        points: of the matching, as in ``mmseg_m2f.accelerate``.

    Raises:
        CannotAccelerateError: when a run starts, what of its model cannot be swapped.
    """

    # Before the hook that writes down the head's configuration.
    priority = 'VERY_HIGH'

    def __init__(self, points: str = 'shared') -> None:
        self.points = points

    def before_run(self, runner: Runner) -> None:
        """Once for a model that trains and is tested afterwards."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not is_accelerated(model):
            accelerate_openmmlab(model, self.points)


def _stock_head(model: nn.Module) -> tuple[str, Any]:
    if is_accelerated(model):
        raise CannotAccelerateError('the model is accelerated already: nothing is left to swap')
    for name in HEADS:
        head = getattr(model, name, None)
        if head is None:
            continue
        if isinstance(head, MaskHead):
            raise CannotAccelerateError(f'{name} is of mmseg_m2f: there is nothing to swap')
        if kind_of(head) not in _HEADS:
            raise CannotAccelerateError(
                f'{name} is {kind_of(head)}; what can be swapped is {" or ".join(_HEADS)} itself'
            )
        return name, head
    raise CannotAccelerateError(
        f'{kind_of(model)} is no Mask2Former: it has neither {" nor ".join(HEADS)}, nor is it that '
        'of Hugging Face'
    )


def _build(head: Any, points: str) -> tuple[MaskHead, str | None]:
    """Our head, and why its losses cannot take the place of the stock ones, or None."""
    settings, why = network_settings(head), _objection_to_losses(head)
    if why is None:
        settings |= loss_settings(head)
    if _HEADS[kind_of(head)] == 'mmseg':
        translated = stock_configs.semantic_head(
            {
                **settings,
                'num_classes': head.num_classes,
                'align_corners': head.align_corners,
                'ignore_index': head.ignore_index,
            }
        )
    else:
        numbers = {
            'num_things_classes': head.num_things_classes,
            'num_stuff_classes': head.num_stuff_classes,
        }
        translated = stock_configs.universal_head({**settings, **numbers})
    foreign = _foreign(translated)
    if foreign:
        why = f'ours have no {foreign}'
        translated = {**translated, 'losses': {}, 'matcher': {}, 'class_weight': None}
    translated['matcher'] = {**translated['matcher'], 'points': points}
    kind = Mask2FormerHead if _HEADS[kind_of(head)] == 'mmseg' else Mask2FormerUniversalHead
    with torch.random.fork_rng(devices=[]):  # ours are initialised, and lose that at once
        return kind(**{**translated, 'compat': _COMPAT}), why


def _objection_to_losses(head: Any) -> str | None:
    if not hasattr(head, 'assigner'):
        return 'the model was built without train_cfg'
    if head.class_weight is None:
        return 'loss_cls has no class_weight'
    for name, part in (('sampler', 'MaskPseudoSampler'), ('assigner', 'HungarianAssigner')):
        if kind_of(getattr(head, name)) != f'mmdet.{part}':
            return f'the {name} is {kind_of(getattr(head, name))}'
    return None


def _foreign(translated: Mapping[str, Any]) -> str:
    """Types of losses and costs that would stay mmdet's."""
    parts = [*translated['losses'].values(), *(translated['matcher'].get('costs') or {}).values()]
    return ', '.join(part['type'] for part in parts if part and 'type' in part)


def _weights(name: str, stock: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The stock parameters by the names they have inside of our head."""
    named = {
        f'{name}.{part}.{key}': value
        for part, top in stock.items()
        for key, value in top.named_parameters()
    }
    layout = 'mmdet' if name == 'panoptic_head' else 'mmseg'
    try:
        ours = to_ours(named, layout, name)
    except ValueError as error:
        raise CannotAccelerateError(str(error)) from None
    return {key.removeprefix(f'{name}.'): value for key, value in ours.items()}


def _detector_methods(model: Any, head: nn.Module, twin: Twin) -> DetectorMethods | None:
    """None if the results are formed by something else than mmdet's own two classes."""
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is None or (kind_of(model), kind_of(fusion)) != _DETECTOR:
        _say(f'accelerate: results stay those of {kind_of(model)} and {kind_of(fusion)}')
        return None
    postprocess_config(fusion.test_cfg or {})
    return DetectorMethods(model, head, twin)


def _say(line: str) -> None:
    print_log(line, logger='current', level=logging.WARNING)
