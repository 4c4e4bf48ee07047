"""Mixed precision on every device, with or without an accelerator."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmseg_m2f.adapters.dtypes import DTYPES, has_bfloat16
from mmseg_m2f.registry import OPTIM_WRAPPERS

_FALLBACK = " (float16 needs an accelerator; dtype='bfloat16' works here too)"


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """MMEngine's optimizer wrapper with automatic mixed precision on every device.

    The type depends on the device of the parameters at the first use:

    ==================  ==========================  ========================================
    ``dtype``           accelerator                 CPU
    ==================  ==========================  ========================================
    None, ``float16``   float16, gradients scaled   float32
    ``auto``            float16, gradients scaled   bfloat16 if `has_bfloat16`, else float32
    ``bfloat16``        bfloat16                    bfloat16
    ``float32``         float32                     float32
    ==================  ==========================  ========================================

    The choice is logged once. Scaled gradients are unscaled before they are clipped, and a step
    whose gradients overflow is skipped.

    Args:
        dtype: a name from the table, or the torch dtype.
        loss_scale: for float16: ``'dynamic'``, a fixed scale, or a dict of
            ``torch.amp.GradScaler`` arguments for a dynamic scale with other constants.
        kwargs: ``optimizer``, ``accumulative_counts`` and ``clip_grad`` of
            ``mmengine.optim.OptimWrapper``.

    Raises:
        ValueError: ``dtype`` or ``loss_scale`` is none of these.
    """

    def __init__(
        self,
        loss_scale: str | float | dict = 'dynamic',
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._native = dtype == 'auto'
        self._asked_dtype = _checked_dtype(None if self._native else dtype)
        self._scaler_args = _checked_scaler_args(loss_scale)
        # A fixed scale is set again after every step, else the scaler would let it grow.
        self._fixed_scale = None if isinstance(loss_scale, str | dict) else float(loss_scale)
        self._device: torch.device | None = None
        self._scaler: torch.amp.GradScaler | None = None
        self.cast_dtype = torch.float32

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """Return the gradient scaler; None if nothing is scaled (CPU, bfloat16, float32)."""
        self._set_up()
        return self._scaler

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of ``loss``, scaled if there is a scaler."""
        scaler = self.loss_scaler
        super().backward(loss if scaler is None else scaler.scale(loss), **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Unscale and clip the gradients, then update the parameters."""
        scaler = self.loss_scaler
        if scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            scaler.unscale_(self.optimizer)
            self._clip_grad()
        scaler.step(self.optimizer, **kwargs)
        scaler.update(self._fixed_scale)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast, without gradient exchange while accumulating."""
        self._set_up()
        assert self._device is not None
        enabled = self.cast_dtype is not torch.float32
        with (
            super().optim_context(model),
            torch.autocast(self._device.type, dtype=self.cast_dtype, enabled=enabled),
        ):
            yield

    def state_dict(self) -> dict:
        """Return the optimizer's state, with ``loss_scaler`` if there is a scaler."""
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this wrapper or of MMEngine's, saved on a CPU or an accelerator.

        The optimizer stays fused, or not fused, as it was built.
        """
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if self.loss_scaler is not None and scale:
            self.loss_scaler.load_state_dict(scale)
        elif self.loss_scaler is not None:
            _log('the checkpoint has no loss scale (CPU, bfloat16 or no AMP): a new one is used')
        elif scale:
            _log('the loss scale of the checkpoint is ignored: this run scales no gradients')
        if 'fused' in self.optimizer.defaults:
            # PyTorch takes `fused` from the state, but the scaler asks the optimizer.
            fused = self.optimizer.defaults['fused']
            state['param_groups'] = [{**group, 'fused': fused} for group in state['param_groups']]
        super().load_state_dict(state)

    def _set_up(self) -> None:
        # Not in __init__: the model may be moved between building and the first use.
        if self._device is not None:
            return
        self._device = self.optimizer.param_groups[0]['params'][0].device
        self.cast_dtype = _dtype_on(self._device, self._asked_dtype, self._native)
        if self.cast_dtype is torch.float16:
            self._scaler = torch.amp.GradScaler(self._device.type, **self._scaler_args)
        chosen = str(self.cast_dtype).removeprefix('torch.')
        hint = '' if self._native or self.cast_dtype is self._asked_dtype else _FALLBACK
        _log(f'AmpOptimWrapper: {chosen} on {self._device.type}{hint}')


def _dtype_on(device: torch.device, asked: torch.dtype, native: bool) -> torch.dtype:
    if device.type != 'cpu' or asked is not torch.float16:
        return asked
    return torch.bfloat16 if native and has_bfloat16() else torch.float32


def _checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    name = 'float16' if dtype is None else str(dtype).removeprefix('torch.')
    if name not in DTYPES:
        raise ValueError(f"dtype must be None, 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    return DTYPES[name]


def _checked_scaler_args(loss_scale: str | float | dict) -> dict[str, Any]:
    if loss_scale == 'dynamic':
        return {}
    if isinstance(loss_scale, dict):
        return dict(loss_scale)
    if isinstance(loss_scale, int | float) and loss_scale > 0:
        return {'init_scale': float(loss_scale)}
    raise ValueError(
        "loss_scale must be 'dynamic', a positive number or a dict of "
        f'torch.amp.GradScaler arguments, got {loss_scale!r}'
    )


def _log(message: str) -> None:
    print_log(message, logger='current', level=logging.INFO)
