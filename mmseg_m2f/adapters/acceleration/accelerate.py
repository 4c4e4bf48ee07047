"""Let built Mask2Formers of MMSegmentation and MMDetection compute with our parts; the hook."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f.adapters.acceleration.twin import Detector, SemanticTwin, UniversalTwin, warn
from mmseg_m2f.adapters.migrate import stock_head
from mmseg_m2f.adapters.migrate.stock_head import kind_of
from mmseg_m2f.adapters.models.config import build_postprocess_config
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.registry import HOOKS

_DETECTOR = ('mmdet.Mask2Former', 'mmdet.MaskFormerFusionHead')
# What the stock losses do otherwise than the official code.
_COMPAT = {'num_masks_mode': 'mmdet', 'keep_empty_gt': True}
# The attribute that holds the replaced methods of a module.
_MARK = '_accelerated_methods'


class CannotAccelerateError(ValueError):
    """A model cannot be accelerated; the message names the part and the reason."""


def accelerate(model: nn.Module, points: str = 'shared') -> None:
    """Implement ``mmseg_m2f.accelerate``, which has the documentation."""
    # Nothing is replaced before everything has been checked.
    model = getattr(model, 'module', model)
    name, head = _find_head(model)
    try:
        twin, why_stock_losses = _build_twin(head, points)
        detector = _checked_detector(model) if name == 'panoptic_head' else None
    except ValueError as error:
        raise CannotAccelerateError(f'{name}: {error}') from None
    if why_stock_losses:
        warn(f'accelerate: the losses and the matching stay the stock ones, {why_stock_losses}')
    else:
        _replace_methods(head, loss=twin.loss)
    _replace_methods(
        head,
        forward=twin.forward,
        predict=twin.predict,
        resolved_config=twin.ours.resolved_config,
        compile=twin.ours.compile,
    )
    if detector is not None:
        _replace_methods(detector, predict=Detector(detector, twin).predict)


def is_accelerated(model: nn.Module) -> bool:
    """Return True if a method of the model or of a part of it has been replaced."""
    return any(_MARK in vars(module) for module in model.modules())


def restore(model: nn.Module) -> nn.Module:
    """Give an accelerated model its own methods back; the weights stay as they are now.

    Raises:
        ValueError: a method has been replaced again since; the model is left as it was.
    """
    marked = [module for module in model.modules() if _MARK in vars(module)]
    for module in marked:
        for name, method in vars(module)[_MARK].items():
            if vars(module).get(name) != method:
                raise ValueError(
                    f'restore: {name} of {type(module).__name__} is not what accelerate put there: '
                    'undo first what has replaced it since (prepare_inference with a dtype does), '
                    'or build the model anew'
                )
    for module in marked:
        for name in vars(module).pop(_MARK):
            delattr(module, name)
    return model


@HOOKS.register_module()
class AccelerateHook(Hook):
    """Call ``mmseg_m2f.accelerate(model, points)`` before a run trains, validates or tests."""

    # Before the hook that writes down the head's config.
    priority = 'VERY_HIGH'

    def __init__(self, points: str = 'shared') -> None:
        self.points = points

    def before_run(self, runner: Runner) -> None:
        """Accelerate the model, unless an earlier run has done so."""
        if not is_accelerated(runner.model):
            accelerate(runner.model, self.points)


def _find_head(model: nn.Module) -> tuple[str, Any]:
    if is_accelerated(model):
        raise CannotAccelerateError('the model is accelerated already: nothing is left to swap')
    names = stock_head.NAMES.values()
    name = next((name for name in names if getattr(model, name, None) is not None), None)
    if name is None:
        raise CannotAccelerateError(
            f'{kind_of(model)} is no Mask2Former of mmseg or mmdet: it has neither '
            f'{" nor ".join(names)}'
        )
    head = getattr(model, name)
    if isinstance(head, MaskHead):
        raise CannotAccelerateError(f'{name} is of mmseg_m2f: there is nothing to swap')
    if kind_of(head) not in stock_head.NAMES:
        raise CannotAccelerateError(
            f'{name} is {kind_of(head)}; only {" or ".join(stock_head.NAMES)} itself can be swapped'
        )
    return name, head


def _build_twin(head: Any, points: str) -> tuple[Any, str]:
    """Return our head on the parameters of ``head``, and why the stock losses stay, or ''."""
    settings: dict[str, Any] = {}
    why_stock_losses = ''
    try:
        settings = stock_head.read_losses(head)
    except ValueError as error:
        why_stock_losses = str(error)
    settings['matcher'] = {**settings.get('matcher', {}), 'points': points}
    # Our initial weights are dropped: the user's random numbers stay what they are.
    with torch.random.fork_rng(devices=[]):
        ours = stock_head.build_ours(head, compat=_COMPAT, **settings)
    twin = SemanticTwin if kind_of(head) == 'mmseg.Mask2FormerHead' else UniversalTwin
    return twin(ours, head), why_stock_losses


def _checked_detector(model: Any) -> Any:
    """Return the detector if we can form its results, else None."""
    fusion: Any = getattr(model, 'panoptic_fusion_head', None)
    if (kind_of(model), kind_of(fusion)) != _DETECTOR:
        warn(f'accelerate: results stay those of {kind_of(model)} and {kind_of(fusion)}')
        return None
    if 'predict' in vars(model):
        raise CannotAccelerateError(
            'predict of the model has been replaced, which would be lost (prepare_inference with a '
            'dtype does so): call accelerate first, on a model built anew'
        )
    build_postprocess_config(stock_head.read_results(fusion.test_cfg or {}))  # checks the values
    return model


def _replace_methods(module: nn.Module, **methods: Callable[..., Any]) -> None:
    """Set ``methods`` on this module object; its class and other objects keep theirs.

    A bound method of a plain object survives ``copy.deepcopy`` and ``torch.save`` of the module.
    """
    for name, method in methods.items():
        setattr(module, name, method)
    setattr(module, _MARK, {**vars(module).get(_MARK, {}), **methods})
