"""Let built Mask2Formers of MMSegmentation and MMDetection compute with our parts; the hook."""

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg_m2f.adapters.acceleration.methods import (
    DetectorMethods,
    SemanticMethods,
    UniversalMethods,
    postprocess_config,
)
from mmseg_m2f.adapters.acceleration.stock_head import build_ours, check_network, kind_of
from mmseg_m2f.adapters.acceleration.swap import (
    CannotAccelerateError,
    is_accelerated,
    replace_methods,
)
from mmseg_m2f.adapters.acceleration.twin import Twin, network_modules
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.checkpoints import HEADS, to_ours
from mmseg_m2f.registry import HOOKS

_METHODS: dict[str, Any] = {
    'mmseg.Mask2FormerHead': SemanticMethods,
    'mmdet.Mask2FormerHead': UniversalMethods,
}
_DETECTOR = ('mmdet.Mask2Former', 'mmdet.MaskFormerFusionHead')


def accelerate(model: nn.Module, points: str = 'shared') -> None:
    """Implement ``mmseg_m2f.accelerate``, which has the documentation."""
    # Nothing is replaced before everything has been checked.
    model = getattr(model, 'module', model)
    name, head = _stock_head(model)
    try:
        check_network(head)
        ours, why_stock_losses = build_ours(head, points)
        methods = _METHODS[kind_of(head)](head, Twin(ours, head, _weights_by_our_names(name, head)))
        detector = _checked_detector(model) if name == 'panoptic_head' else None
    except ValueError as error:
        raise CannotAccelerateError(f'{name}: {error}') from None
    if why_stock_losses:
        _warn(f'accelerate: the losses and the matching stay the stock ones, {why_stock_losses}')
    else:
        replace_methods(head, loss=methods.loss)
    replace_methods(
        head,
        forward=methods.forward,
        predict=methods.predict,
        resolved_config=ours.resolved_config,
        compile=ours.compile,
    )
    if detector is not None:
        replace_methods(detector, predict=DetectorMethods(detector, methods).predict)


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


def _stock_head(model: nn.Module) -> tuple[str, Any]:
    if is_accelerated(model):
        raise CannotAccelerateError('the model is accelerated already: nothing is left to swap')
    name = next((name for name in HEADS if getattr(model, name, None) is not None), None)
    if name is None:
        raise CannotAccelerateError(
            f'{kind_of(model)} is no Mask2Former of mmseg or mmdet: it has neither '
            f'{" nor ".join(HEADS)}'
        )
    head = getattr(model, name)
    if isinstance(head, MaskHead):
        raise CannotAccelerateError(f'{name} is of mmseg_m2f: there is nothing to swap')
    if kind_of(head) not in _METHODS:
        raise CannotAccelerateError(
            f'{name} is {kind_of(head)}; only {" or ".join(_METHODS)} itself can be swapped'
        )
    return name, head


def _checked_detector(model: Any) -> Any:
    """Return the detector if we can form its results, else None."""
    fusion: Any = getattr(model, 'panoptic_fusion_head', None)
    if (kind_of(model), kind_of(fusion)) != _DETECTOR:
        _warn(f'accelerate: results stay those of {kind_of(model)} and {kind_of(fusion)}')
        return None
    if 'predict' in vars(model):
        raise CannotAccelerateError(
            'predict of the model has been replaced, which would be lost (prepare_inference with a '
            'dtype does so): call accelerate first, on a model built anew'
        )
    postprocess_config(fusion.test_cfg or {})
    return model


def _weights_by_our_names(name: str, head: nn.Module) -> dict[str, Tensor]:
    """Return the stock parameters by the names they have in our head."""
    named = {
        f'{name}.{path}.{key}': value
        for path, module in network_modules(head).items()
        for key, value in module.named_parameters(recurse=False)
    }
    ours = to_ours(named, 'mmdet' if name == 'panoptic_head' else 'mmseg', name)
    return {key.removeprefix(f'{name}.'): value for key, value in ours.items()}


def _warn(line: str) -> None:
    print_log(line, logger='current', level=logging.WARNING)
