"""A module of ours on the parameters of a stock one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EXACT_TYPES = (torch.float32, torch.float64)
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


class CannotAccelerateError(ValueError):
    """What of a model cannot be swapped, by its name, and why."""


class _Shared(NamedTuple):
    """Parameter ``name`` of ``module`` is ``their_name`` of ``their_module``."""

    module: nn.Module
    name: str
    their_module: nn.Module
    their_name: str
    path: str


class _Child(NamedTuple):
    """That ``siblings[name]`` is ``module``."""

    siblings: dict[str, nn.Module | None]
    name: str
    module: nn.Module
    path: str


class Twin:
    """``ours`` on the parameters of ``stock``, and a watch over what would part the two.

    Args:
        ours: computes; its own parameters are dropped.
        owner: the module whose method leads to ``ours``, with its path as messages name it.
        stock: what ``ours`` stands for, by the paths they have below the owner.
        weights: the stock parameters under the names of ``ours``.
        say: logs one line.

    Raises:
        CannotAccelerateError: the parameters of the two are not one to one, or `objection`.
    """

    def __init__(
        self,
        ours: nn.Module,
        owner: tuple[str, nn.Module],
        stock: Mapping[str, nn.Module],
        weights: Mapping[str, Tensor],
        say: Callable[[str], None],
    ) -> None:
        self.ours: Any = ours
        self.say = say
        name, module = owner
        self._shared = _one_to_one(
            ours, {_join(name, path): m for path, m in stock.items()}, weights
        )
        self._children = [
            child._replace(path=_join(name, child.path)) for child in _children(module, stock)
        ]
        self._said: set[str] = set()
        if objection := self.objection():
            raise CannotAccelerateError(objection)

    def ready(self, *objections: str | None) -> bool:
        """Whether ``ours`` may compute now, on today's parameters and their device.

        If not, because of the caller's ``objections`` or of `objection`, the first reason is
        logged, once, and the stock modules are to compute.
        """
        reasons = (reason for reason in (*objections, self.objection()) if reason)
        reason = next(reasons, None)
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            self.say(f'not accelerated, the stock path computes: {reason}. This is said once.')
        return reason is None

    def objection(self) -> str | None:
        """What has been done to the stock modules since that ours would not follow, or None."""
        # A graph's own guards watch the modules it was traced from.
        return None if torch.compiler.is_compiling() else self._replaced() or self.follow()

    def follow(self) -> str | None:
        """Take the parameters the stock modules have now; why that is impossible, or None."""
        device = None
        for shared in self._shared:
            value = shared.their_module._parameters.get(shared.their_name)
            if value is None:
                return f'{shared.path} is no parameter any more'
            if value.dtype not in EXACT_TYPES:
                return (
                    f'{shared.path} is {value.dtype}, ours computes with weights of float32 or '
                    'float64 only (autocast works)'
                )
            shared.module._parameters[shared.name] = value
            device = value.device
        for module in self.ours.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device != device:
                    module._buffers[name] = buffer.to(device)
        return None

    def _replaced(self) -> str | None:
        for child in self._children:
            if child.siblings.get(child.name) is not child.module:
                return f'{child.path} has been replaced'
            found = vars(child.module)
            if 'forward' in found or any(found.get(kind) for kind in _HOOKS):
                return f'{child.path} has hooks or a forward of its own, which ours would pass by'
        return None


def _one_to_one(
    ours: nn.Module, stock: Mapping[str, nn.Module], weights: Mapping[str, Tensor]
) -> list[_Shared]:
    places = {
        id(value): (module, name, _join(root, path, name))
        for root, top in stock.items()
        for path, module in top.named_modules()
        for name, value in module._parameters.items()
        if value is not None
    }
    expected = dict(ours.named_parameters())
    if surplus := sorted(places[id(weights[key])][2] for key in weights.keys() - expected.keys()):
        raise CannotAccelerateError(f'our parts have no place for {", ".join(surplus)}')
    if missing := sorted(expected.keys() - weights.keys()):
        raise CannotAccelerateError(f'nothing in the model is our {", ".join(missing)}')
    shared = []
    for key, value in expected.items():
        module, name, path = places[id(weights[key])]
        if module._parameters[name].shape != value.shape:
            raise CannotAccelerateError(
                f'{path} has the shape {tuple(weights[key].shape)}, our parts want '
                f'{tuple(value.shape)} there'
            )
        owner, _, leaf = key.rpartition('.')
        shared.append(_Shared(ours.get_submodule(owner), leaf, module, name, path))
    return shared


def _children(owner: nn.Module, stock: Iterable[str]) -> Iterable[_Child]:
    """Each module on the way from the owner to the stock modules, and each below them."""
    seen: set[str] = set()
    for root in stock:
        steps = root.split('.')
        below = owner.get_submodule(root).named_modules()
        paths = ['.'.join(steps[: i + 1]) for i in range(len(steps))]
        for path in [*paths, *(_join(root, path) for path, _ in below)]:
            if path not in seen:
                seen.add(path)
                parent, _, name = path.rpartition('.')
                siblings = owner.get_submodule(parent)._modules
                yield _Child(siblings, name, owner.get_submodule(path), path)


def _join(*parts: str) -> str:
    return '.'.join(part for part in parts if part)
