"""Mixed precision on every device, with or without an accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmseg_m2f.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """MMEngine's optimizer wrapper with automatic mixed precision on every device.

    Float16 is used on an accelerator only, with scaled gradients: they are unscaled before they
    are clipped, and a step whose gradients overflow is skipped. A CPU computes in float32 instead,
    or with ``'auto'`` in bfloat16 if it has the instructions. The choice is logged once.

    Args:
        dtype: ``'float16'`` (also None), ``'bfloat16'``, ``'float32'``, the torch dtype of one of
            these, or ``'auto'`` (float16 on an accelerator).
        loss_scale: for float16: ``'dynamic'``, a fixed scale, or a dict of
            ``torch.amp.GradScaler`` arguments for a dynamic scale with other constants.
        kwargs: those of ``mmengine.optim.OptimWrapper``.

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
        self._asked = 'float16' if dtype is None else str(dtype).removeprefix('torch.')
        if self._asked not in ('auto', 'float16', 'bfloat16', 'float32'):
            raise ValueError(
                f"dtype must be None, 'auto', 'float16', 'bfloat16' or 'float32', got {dtype!r}"
            )
        self._scaler_args = loss_scale if isinstance(loss_scale, dict) else {}
        # A fixed scale is set again after every step, else the scaler would let it grow.
        self._fixed_scale = None
        if isinstance(loss_scale, int | float) and loss_scale > 0:
            self._fixed_scale = float(loss_scale)
            self._scaler_args = {'init_scale': self._fixed_scale}
        elif loss_scale != 'dynamic' and not isinstance(loss_scale, dict):
            raise ValueError(
                "loss_scale must be 'dynamic', a positive number or a dict of "
                f'torch.amp.GradScaler arguments, got {loss_scale!r}'
            )

    @cached_property
    def cast_dtype(self) -> torch.dtype:
        """The type of the forward pass.

        The first use decides, because the model may be moved after this wrapper is built.
        """
        on_cpu, name, hint = self._device.type == 'cpu', self._asked, ''
        if name == 'auto':
            name = 'float16'
            if on_cpu:
                name = 'bfloat16' if has_bfloat16() else 'float32'
        elif name == 'float16' and on_cpu:
            name = 'float32'
            hint = " (float16 needs an accelerator; dtype='bfloat16' works here too)"
        print_log(f'AmpOptimWrapper: {name} on {self._device.type}{hint}', logger='current')
        return getattr(torch, name)

    @cached_property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler; None if nothing is scaled (CPU, bfloat16, float32)."""
        if self.cast_dtype is torch.float16:
            return torch.amp.GradScaler(self._device.type, **self._scaler_args)
        return None

    @property
    def _device(self) -> torch.device:
        return self.optimizer.param_groups[0]['params'][0].device

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
        dtype = self.cast_dtype
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32)
        with super().optim_context(model), autocast:
            yield

    def state_dict(self) -> dict:
        """Return the optimizer's state, with ``loss_scaler`` if there is a scaler."""
        scaler = self.loss_scaler
        scale = {} if scaler is None else {'loss_scaler': scaler.state_dict()}
        return {**super().state_dict(), **scale}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this wrapper or of MMEngine's, saved on a CPU or an accelerator.

        The optimizer stays fused, or not fused, as it was built.
        """
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if self.loss_scaler is not None and scale:
            self.loss_scaler.load_state_dict(scale)
        elif self.loss_scaler is not None:
            print_log('the checkpoint has no loss scale: a new one is used', logger='current')
        elif scale:
            print_log('the loss scale of the checkpoint is not used here', logger='current')
        if 'fused' in self.optimizer.defaults:
            # PyTorch takes `fused` from the state, but the scaler asks the optimizer.
            fused = self.optimizer.defaults['fused']
            state['param_groups'] = [{**group, 'fused': fused} for group in state['param_groups']]
        super().load_state_dict(state)


def has_bfloat16() -> bool:
    """Return True if this CPU multiplies bfloat16 in hardware; else it is slower than float32."""
    # Processors with AMX have AVX512-BF16, too.
    probe = getattr(torch.cpu, '_is_avx512_bf16_supported', None)
    return probe is not None and bool(probe())
