"""Built segmentors and detectors of OpenMMLab, made ready for fast predictions; the hook for it."""

from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_m2f.adapters.acceleration import Twin
from mmseg_m2f.adapters.dtypes import DTYPES
from mmseg_m2f.adapters.inference.autocast import set_autocast
from mmseg_m2f.adapters.inference.cast_weights import cast_weights as cast_weights_of
from mmseg_m2f.adapters.inference.cast_weights import check_casting, try_casting
from mmseg_m2f.adapters.inference.channels_last import to_channels_last, with_backbone
from mmseg_m2f.adapters.inference.trials import CannotPrepareError, Trial, try_on_copy
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.checkpoints import HEADS
from mmseg_m2f.registry import HOOKS

_WITHOUT = 'Set fuse_norms=False to leave the norms as they are.'


def prepare_openmmlab(
    model: nn.Module,
    *,
    channels_last: bool = True,
    fuse_norms: bool = True,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,  # noqa: A002 - as torch calls it
    cast_weights: bool = False,
) -> None:
    """``mmseg_m2f.prepare_inference``, which has the documentation.

    Raises:
        CannotPrepareError: what cannot be prepared; the model is as it was.
    """
    inner = _checked_model(model)
    checked_dtype = _checked_dtype(dtype, inner)
    fuses = fuse_norms and bool(_norms(inner.backbone))
    cast_to = check_casting(inner, cast_weights, checked_dtype, fuses=fuses)
    head = _compilable_head(inner) if compile else None
    if cast_to is not None:
        try_casting(inner, cast_to)
    if channels_last:
        _try_channels_last(inner.backbone)
    if fuses:
        _fuse_norms(inner.backbone)
    if cast_to is not None:
        cast_weights_of(inner, cast_to)
    if channels_last:
        to_channels_last(inner)
    set_autocast(inner, checked_dtype)
    for part in (inner.backbone, getattr(inner, 'neck', None), head) if compile else ():
        if part is not None:
            part.compile()


@HOOKS.register_module()
class PrepareInferenceHook(Hook):
    """``mmseg_m2f.prepare_inference`` on the model of a run before it is tested, weights loaded.

    Validation within a training is left alone: a prepared model cannot be trained on.

    Args:
        channels_last, fuse_norms, dtype, compile, cast_weights: as in
            ``mmseg_m2f.prepare_inference``.

    Raises:
        CannotPrepareError: before the test, what cannot be prepared; before a training, that the
            model was prepared for a test.
    """

    # After the hooks that change the model for the test.
    priority = 'VERY_LOW'

    def __init__(
        self,
        channels_last: bool = True,
        fuse_norms: bool = True,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,  # noqa: A002 - as torch calls it
        cast_weights: bool = False,
    ) -> None:
        self.settings: dict[str, Any] = {
            'channels_last': channels_last,
            'fuse_norms': fuse_norms,
            'dtype': dtype,
            'compile': compile,
            'cast_weights': cast_weights,
        }
        # What makes the model one that cannot be trained on.
        self._done: str | None = None

    def before_test(self, runner: Runner) -> None:
        """The runner has loaded the checkpoint by now."""
        fuses = self.settings['fuse_norms'] and _has_norms(runner.model)
        casts = self.settings['cast_weights']
        if (fuses or casts) and any(isinstance(hook, EMAHook) for hook in runner.hooks):
            culprits = {'fuse_norms': fuses, 'cast_weights': casts}
            without = ', '.join(f'{name}=False' for name, is_on in culprits.items() if is_on)
            raise CannotPrepareError(
                'PrepareInferenceHook: EMAHook exchanges all weights around a test, one by one, '
                f'which fusing and casting would spoil. Set {without}. Or take EMAHook out of the '
                "test: checkpoints hold the averaged weights as the model's own."
            )
        runner.model.eval()  # the loop does so only after this
        prepare_openmmlab(runner.model, **self.settings)
        if casts:
            self._done = 'cast the weights of this model'
        elif fuses:
            self._done = 'fused the norms of this model into its convolutions'

    def before_train(self, runner: Runner) -> None:
        """Nothing to train is left of fused norms, and checkpoints would lack them."""
        if self._done is not None:
            raise CannotPrepareError(
                f'PrepareInferenceHook: the test before has {self._done}. Train first, or in a '
                'runner of its own.'
            )


def _checked_model(model: nn.Module) -> Any:
    inner = with_backbone(model)
    if inner is None or not hasattr(inner, 'predict'):
        raise CannotPrepareError(
            f'prepare_inference: {type(model).__name__} is no segmentor of mmseg or detector of '
            'mmdet, which have a backbone and predict. Any other model takes '
            'model.to(memory_format=torch.channels_last) and torch.autocast around its call.'
        )
    if inner.training:
        raise CannotPrepareError(
            'prepare_inference: the model is in training mode, and is to be in evaluation mode: '
            'call model.eval() first'
        )
    return inner


def _checked_dtype(dtype: str | torch.dtype | None, model: nn.Module) -> torch.dtype | None:
    name = 'float32' if dtype is None else str(dtype).removeprefix('torch.')
    if name not in DTYPES:
        raise CannotPrepareError(
            f'prepare_inference: dtype must be None or one of {list(DTYPES)}, got {dtype!r}'
        )
    if name == 'float16' and _device_of(model).type == 'cpu':
        raise CannotPrepareError(
            'prepare_inference: float16 needs an accelerator, and the model is on the CPU: '
            "dtype='bfloat16' works there, or move the model first"
        )
    return None if name == 'float32' else DTYPES[name]


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _compilable_head(model: nn.Module) -> nn.Module:
    """Whose ``forward`` is the network, without post-processing or the names of files.

    A stock head is given the data samples, too: each image would be compiled anew.
    """
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, MaskHead):
            return head
        twin = getattr(getattr(getattr(head, 'forward', None), '__self__', None), 'twin', None)
        if isinstance(twin, Twin):
            return twin.ours
    raise CannotPrepareError(
        f'prepare_inference: compile=True takes heads of mmseg_m2f, and {type(model).__name__} has '
        'none. A stock Mask2Former: call mmseg_m2f.accelerate(model) first. Any other: '
        'compile=False, and model.backbone.compile() for the backbone alone.'
    )


def _try_channels_last(backbone: nn.Module) -> None:
    """Convolutions of their own kind may read their weights as numbers in the usual order."""
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    if all(type(convolution) is nn.Conv2d for convolution in convolutions):
        return
    try_on_copy(
        backbone,
        to_channels_last,
        Trial(
            name=type(backbone).__name__,
            done='brought into channels-last order',
            why='it goes by the order of its weights in memory',
            way_out='Set channels_last=False to leave the weights in their order.',
        ),
    )


def _fuse_norms(backbone: nn.Module) -> None:
    """By mmcv, which goes by the order of definition: a copy is to show first that it is right."""
    for name, norm in _norms(backbone).items():
        if objection := _objection(norm):
            raise CannotPrepareError(
                f'prepare_inference: backbone.{name} ({type(norm).__name__}) {objection}. '
                f'{_WITHOUT}'
            )
    try_on_copy(
        backbone,
        fuse_conv_bn,
        Trial(
            name=type(backbone).__name__,
            done='fused',
            why='its norms do not follow their convolutions directly',
            way_out=_WITHOUT,
        ),
    )
    fuse_conv_bn(backbone)


def _has_norms(model: nn.Module) -> bool:
    inner = with_backbone(model)
    return inner is not None and bool(_norms(inner.backbone))


def _norms(backbone: nn.Module) -> dict[str, nn.Module]:
    """What mmcv fuses, SyncBatchNorm of torch included; other norms are left alone."""
    named = backbone.named_modules()
    return {name: module for name, module in named if isinstance(module, _BatchNorm)}


def _objection(norm: Any) -> str | None:
    if norm.training:
        return 'is in training mode: call model.eval() first'
    if norm.running_mean is None or norm.running_var is None:
        return 'keeps no running statistics, which would become weights'
    if norm.weight is None or norm.bias is None:
        return 'has no weight and bias (affine=False), which mmcv asks for'
    return None
