"""Which classes of the frameworks' backbones are meant, and what keeps a part from them."""

import functools
import importlib
import sys
from collections.abc import Sequence

from torch import nn

from mmseg_m2f.core.layers import has_hooks

_PACKAGES = ('mmseg', 'mmdet')


def known_classes(module: str, names: Sequence[str]) -> frozenset[type]:
    """The classes of these names in ``models.backbones.<module>`` of what is imported already.

    A model of a package that nobody has imported does not exist.
    """
    return frozenset().union(*(_classes(package, module, tuple(names)) for package in _loaded()))


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's ``forward``, or something else."""
    return has_hooks(module) or 'forward' in vars(module)


def _loaded() -> list[str]:
    return [package for package in _PACKAGES if f'{package}.models' in sys.modules]


@functools.cache
def _classes(package: str, module: str, names: tuple[str, ...]) -> frozenset[type]:
    library = importlib.import_module(f'{package}.models.backbones.{module}')
    return frozenset(getattr(library, name) for name in names if hasattr(library, name))
