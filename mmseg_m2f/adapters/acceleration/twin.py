"""Our head on the parameters of a stock head."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f.adapters.acceleration.swap import CannotAccelerateError

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def network_modules(head: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a stock head but its losses, by their paths in the head."""
    named = head.named_modules()
    return {path: module for path, module in named if path and not path.startswith('loss_')}


class Twin:
    """Our head, which computes with the parameters of a stock head.

    Args:
        ours: our head; its own parameters are dropped.
        head: the stock head.
        weights: the parameters of ``head`` under the names of ``ours``.

    Raises:
        CannotAccelerateError: the parameters are not one to one, or `objection`.
    """

    def __init__(self, ours: nn.Module, head: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.ours: Any = ours
        self._head, self._network = head, network_modules(head)
        self._shared = _pair_parameters(ours, self._network, weights)
        self._said: set[str] = set()
        if reason := self.objection():
            raise CannotAccelerateError(reason)

    def ready(self, objection: str = '') -> bool:
        """Return True if ``ours`` may compute now, after it took the present parameters.

        If not, because of the caller's ``objection`` or of `objection`, the reason is logged once.
        """
        reason = objection or self.objection()
        if reason and reason not in self._said:
            self._said.add(reason)
            line = f'not accelerated, the stock path computes: {reason}. This is said once.'
            print_log(line, logger='current', level=logging.WARNING)
        return not reason

    def objection(self) -> str:
        """Return what was done to the stock head that ``ours`` cannot follow, or ''."""
        # The guards of a compiled graph watch the modules that it was traced from.
        return '' if torch.compiler.is_compiling() else self._changed_modules() or self._follow()

    def _changed_modules(self) -> str:
        found = network_modules(self._head)
        for path, module in self._network.items():
            if found.get(path) is not module:
                return f'{path} of the head has been replaced'
            own = vars(module)
            if 'forward' in own or any(own.get(kind) for kind in _HOOKS):
                return f'{path} of the head has hooks or a forward that ours would pass by'
        return ''

    def _follow(self) -> str:
        """Take the present parameters and their device; return why that is impossible, or ''."""
        device = None
        for mine, my_name, theirs, their_name, path in self._shared:
            value = theirs._parameters.get(their_name)
            if value is None:
                return f'{path} of the head is no parameter any more'
            if value.dtype not in (torch.float32, torch.float64):
                return (
                    f'{path} of the head is {value.dtype}, our parts compute with weights of '
                    'float32 or float64 only (autocast works)'
                )
            mine._parameters[my_name] = value
            device = value.device
        for module in self.ours.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device != device:
                    module._buffers[name] = buffer.to(device)
        return ''


def _pair_parameters(
    ours: nn.Module, network: Mapping[str, nn.Module], weights: Mapping[str, Tensor]
) -> list[tuple[nn.Module, str, nn.Module, str, str]]:
    """Return each parameter of ours and its stock one, as module and name, and the stock path."""
    mine, theirs = _owners(dict(ours.named_modules())), _owners(network)
    paths_by_id = {id(module._parameters[name]): p for p, (module, name) in theirs.items()}
    paths = {name: paths_by_id[id(value)] for name, value in weights.items()}
    if surplus := sorted(paths[name] for name in paths.keys() - mine.keys()):
        raise CannotAccelerateError(f'our parts have no place for {", ".join(surplus)} of the head')
    if missing := sorted(mine.keys() - paths.keys()):
        raise CannotAccelerateError(f'nothing in the head is our {", ".join(missing)}')
    for name, (module, leaf) in mine.items():
        wanted, found = tuple(module._parameters[leaf].shape), tuple(weights[name].shape)
        if wanted != found:
            raise CannotAccelerateError(
                f'{paths[name]} of the head has the shape {found}, our parts want {wanted} there'
            )
    return [(*mine[name], *theirs[paths[name]], paths[name]) for name in mine]


def _owners(modules: Mapping[str, nn.Module]) -> dict[str, tuple[Any, str]]:
    """Map the path of each parameter to the module that holds it and its name there."""
    return {
        f'{path}.{name}'.removeprefix('.'): (module, name)
        for path, module in modules.items()
        for name, value in module._parameters.items()
        if value is not None
    }
