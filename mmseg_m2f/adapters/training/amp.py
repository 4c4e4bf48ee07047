"""Mixed precision that also runs where there is no accelerator."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmseg_m2f.registry import OPTIM_WRAPPERS

DTYPES = {
    'float16': torch.float16,
    'bfloat16': torch.bfloat16,
    'float32': torch.float32,
}
_FALLBACK = " (float16 needs an accelerator; dtype='bfloat16' works here too)"


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """MMEngine's optimiser wrapper with automatic mixed precision on every device.

    What happens depends on where the optimised parameters are at the first use:

    ==================  =============================  ==============
    ``dtype``           accelerator                    CPU
    ==================  =============================  ==============
    None, ``float16``   float16, gradients scaled      float32
    ``auto``            float16, gradients scaled      bfloat16 if it has instructions for it
    ``bfloat16``        bfloat16                       bfloat16
    ``float32``         float32                        float32
    ==================  =============================  ==============

    The log says once what was chosen. Gradients are brought back to their true size before
    they are clipped, and a step whose gradients overflow is left out.

    Args:
        dtype: A name from the table or the torch dtype.
        loss_scale: Of float16: ``'dynamic'``, a fixed scale, or a dict of
            ``torch.amp.GradScaler`` arguments (a dynamic scale with other constants).
        kwargs: ``optimizer``, ``accumulative_counts`` and ``clip_grad`` of
            ``mmengine.optim.OptimWrapper``.

    Raises:
        ValueError: On another ``dtype`` or ``loss_scale``.
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
        # A fixed scale is written back after every step, else the scaler would let it grow.
        self._fixed_scale = None if isinstance(loss_scale, str | dict) else float(loss_scale)
        self._device: torch.device | None = None
        self._scaler: torch.amp.GradScaler | None = None
        self.cast_dtype = torch.float32

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler, or None where nothing is scaled (CPU, bfloat16, float32)."""
        self._set_up()
        return self._scaler

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Adds the gradients of ``loss``, scaled where a scaler is at work."""
        scaler = self.loss_scaler
        super().backward(loss if scaler is None else scaler.scale(loss), **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Un-scales and clips the gradients, then updates the parameters."""
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
        """Autocast around the forward pass, and no gradient exchange while accumulating."""
        self._set_up()
        assert self._device is not None
        enabled = self.cast_dtype is not torch.float32
        with (
            super().optim_context(model),
            torch.autocast(self._device.type, dtype=self.cast_dtype, enabled=enabled),
        ):
            yield

    def state_dict(self) -> dict:
        """The optimiser's state, with ``loss_scaler`` where a scaler is at work."""
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues from the state of this wrapper or of MMEngine's, from CPU or accelerator.

        The optimiser stays fused or not as it was built, whatever the other one was.
        """
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if self.loss_scaler is not None and scale:
            self.loss_scaler.load_state_dict(scale)
        elif self.loss_scaler is not None:
            _log('the checkpoint has no loss scale (CPU, bfloat16 or no AMP): it starts anew')
        elif scale:
            _log('the loss scale in the checkpoint is not used: nothing is scaled here')
        if 'fused' in self.optimizer.defaults:
            # PyTorch takes it from the state, but what a scaler hands over goes by the optimiser.
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


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX): else it is slower."""
    if hasattr(torch.cpu, 'get_capabilities'):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ('avx512_bf16', 'amx_bf16'))
    # Older versions of PyTorch.
    return bool(getattr(torch.cpu, '_is_avx512_bf16_supported', bool)())


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
