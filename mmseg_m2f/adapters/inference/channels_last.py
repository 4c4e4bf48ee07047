"""Weights in the order of memory that convolutions like best; the hook for training and tests."""

import copy
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg_m2f.registry import HOOKS


def with_backbone(model: nn.Module) -> Any:
    """The segmentor or detector inside of wrappers (DDP, test-time augmentation), or None."""
    while True:
        if isinstance(getattr(model, 'backbone', None), nn.Module):
            return model
        inner = getattr(model, 'module', None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner


def to_channels_last(module: nn.Module) -> None:
    """Bring the 4-d weights below into channels-last order; the parameters stay the same objects.

    ``Module.to`` would do so, too, and stop at weights of 3-d convolutions.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = _channels_last(parameter.data)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Trains and tests with the backbone's 4-d weights in channels-last order, on CPU and GPU.

    The numbers stay what they are up to rounding, which is why a test has the order of the training
    it follows: it gives what the validation gave, to the digit. Parameters, their names and the
    optimiser that holds them stay, too. A checkpoint has the usual order and goes on without this
    hook.

    Raises:
        ValueError: before the training or test, a model without backbone.
    """

    def before_train(self, runner: Runner) -> None:
        """After a checkpoint was loaded or the run resumed."""
        backbone = _backbone(runner)
        to_channels_last(backbone)
        # What a resumed run brought along is in the usual order, and a fused optimiser walks
        # through weights and state side by side as they lie in memory.
        state = runner.optim_wrapper.optimizer.state
        for parameter in backbone.parameters():
            if parameter.dim() == 4 and parameter in state:
                state[parameter] = _map_4d(state[parameter], _channels_last)

    def before_val(self, runner: Runner) -> None:
        """A validation of its own, too: within a training there is nothing left to do."""
        to_channels_last(_backbone(runner))

    def before_test(self, runner: Runner) -> None:
        """After the checkpoint was loaded."""
        to_channels_last(_backbone(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """In the usual order, for the same reason: the next run may be without this hook."""
        for name in {'state_dict', 'optimizer'} & checkpoint.keys():
            checkpoint[name] = _map_4d(checkpoint[name], Tensor.contiguous)


def _backbone(runner: Runner) -> nn.Module:
    model = with_backbone(runner.model)
    if model is None:
        raise ValueError(
            f'ChannelsLastHook: {type(runner.model).__name__} has no backbone; it takes segmentors '
            'of mmseg and detectors of mmdet. Take it out of custom_hooks.'
        )
    backbone: nn.Module = model.backbone
    return backbone


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last)


def _map_4d(node: Any, change: Any) -> Any:
    """Nested dicts with ``change`` applied to the 4-d tensors; the given ones are left alone."""
    if isinstance(node, dict):
        # A copy of its own kind: a state dict carries the versions of its modules.
        changed = copy.copy(node)
        changed.update((key, _map_4d(value, change)) for key, value in node.items())
        return changed
    return change(node) if isinstance(node, Tensor) and node.dim() == 4 else node
