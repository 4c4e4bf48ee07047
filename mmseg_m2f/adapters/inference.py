"""Prepare a built segmentor or detector for inference; the hook that does so before a test."""

import inspect
from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.hooks import EMAHook, Hook
from torch import nn

import mmseg_m2f
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.checkpoints import HEADS
from mmseg_m2f.registry import HOOKS

# mmcv fuses norms in the order of definition, which is right for these: tests compare them.
FUSIBLE = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt')


class CannotPrepareError(ValueError):
    """A model cannot be prepared; the message says why, and the model is as it was."""


def _require(condition: Any, needed: str) -> None:
    if not condition:
        raise CannotPrepareError(f'prepare_inference needs {needed}')


def prepare(model: Any, dtype: Any, channels_last: bool, compiled: bool, fused: bool) -> None:
    """Implement ``mmseg_m2f.prepare_inference``, which has the documentation."""
    while not hasattr(model, 'backbone') and hasattr(model, 'module'):
        model = model.module
    is_ready = hasattr(model, 'backbone') and hasattr(model, 'predict') and not model.training
    _require(is_ready, f'a segmentor or detector after model.eval(), not {type(model).__name__}')
    _require(dtype or channels_last or compiled or fused, 'a setting: all are off by default')
    # Everything is checked before anything is changed.
    autocast = None if dtype is None else _Autocast(model, dtype)
    head = next((getattr(model, name) for name in HEADS if hasattr(model, name)), None)
    # A stock head, given the data samples, would be compiled anew for each; accelerate replaces it.
    is_known = isinstance(head, MaskHead) or 'compile' in getattr(head, '__dict__', {})
    _require(not compiled or is_known, f'our or an accelerated head to compile, not {type(head)}')
    if fused:
        _check_fusible(model.backbone)
        fuse_conv_bn(model.backbone)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if autocast is not None:
        model.predict = autocast.predict
    if compiled:
        for part in filter(None, (model.backbone, getattr(model, 'neck', None), head)):
            part.compile()


class _Autocast:
    """Run ``predict`` of a model under autocast, in place of an earlier autocast."""

    def __init__(self, model: Any, dtype: str | torch.dtype) -> None:
        name, device = str(dtype).removeprefix('torch.'), next(model.parameters()).device.type
        allowed = ['bfloat16'] if device == 'cpu' else ['bfloat16', 'float16']
        _require(name in allowed, f'dtype None or one of {allowed} on {device}, got {dtype!r}')
        before = getattr(model.predict, '__self__', None)
        self.plain: Any = before.plain if isinstance(before, _Autocast) else model.predict
        self.model, self.dtype = model, getattr(torch, name)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            return self.plain(*args, **kwargs)


def _check_fusible(backbone: nn.Module) -> None:
    package, name = type(backbone).__module__.partition('.')[0], type(backbone).__name__
    known = name in FUSIBLE and package in ('mmseg', 'mmdet')
    _require(known, f'for fuse_norms=True one of {FUSIBLE} of mmseg or mmdet, not {package}.{name}')
    for path, part in backbone.named_modules():
        fusible = type(part) is nn.Conv2d or not isinstance(part, nn.Conv2d)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            fusible = not part.training and part.affine and part.running_mean is not None
        _require(fusible, f'plain convolutions and frozen norms to fuse; backbone.{path} is {part}')


@HOOKS.register_module()
class PrepareInferenceHook(Hook):
    """Call ``mmseg_m2f.prepare_inference(model, **settings)`` before a test, weights loaded."""

    priority = 'VERY_LOW'  # after the hooks that change the model for the test

    def __init__(self, **settings: Any) -> None:
        inspect.signature(mmseg_m2f.prepare_inference).bind(None, **settings)  # or TypeError now
        self.settings, self.has_fused = settings, False

    def before_test(self, runner: Any) -> None:
        if self.settings.get('fuse_norms'):
            # EMAHook exchanges weights one by one; fused ones have no partners.
            for hook in runner.hooks:
                _require(not isinstance(hook, EMAHook), 'fuse_norms=False beside EMAHook')
            self.has_fused = True
        mmseg_m2f.prepare_inference(runner.model.eval(), **self.settings)

    def before_train(self, runner: Any) -> None:
        _require(not self.has_fused, 'a training before the test, which has fused the norms')
