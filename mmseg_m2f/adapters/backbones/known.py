"""Which classes of the frameworks' backbones are meant, and whether somebody watches a module."""

import functools
import importlib
import sys
from collections.abc import Sequence

from torch import nn

_PACKAGES = ('mmseg', 'mmdet')


def known_classes(module: str, names: Sequence[str]) -> frozenset[type]:
    """The classes of these names in ``models.backbones.<module>`` of what is imported already.

    A model of a package that nobody has imported does not exist.
    """
    return frozenset().union(*(_classes(package, module, tuple(names)) for package in _loaded()))


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, which a shorter way would pass by."""
    found = vars(module)
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return any(found.get(kind) for kind in kinds)


def _loaded() -> list[str]:
    return [package for package in _PACKAGES if f'{package}.models' in sys.modules]


@functools.cache
def _classes(package: str, module: str, names: tuple[str, ...]) -> frozenset[type]:
    library = importlib.import_module(f'{package}.models.backbones.{module}')
    return frozenset(getattr(library, name) for name in names if hasattr(library, name))
