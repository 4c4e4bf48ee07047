"""Which classes of the frameworks' backbones are meant."""

import functools
import importlib
import sys
from collections.abc import Sequence

_PACKAGES = ('mmseg', 'mmdet')


def known_classes(module: str, names: Sequence[str]) -> frozenset[type]:
    """The classes of these names in ``models.backbones.<module>`` of what is imported already.

    A model of a package that nobody has imported does not exist.
    """
    return frozenset().union(*(_classes(package, module, tuple(names)) for package in _loaded()))


def _loaded() -> list[str]:
    return [package for package in _PACKAGES if f'{package}.models' in sys.modules]


@functools.cache
def _classes(package: str, module: str, names: tuple[str, ...]) -> frozenset[type]:
    library = importlib.import_module(f'{package}.models.backbones.{module}')
    return frozenset(getattr(library, name) for name in names if hasattr(library, name))
