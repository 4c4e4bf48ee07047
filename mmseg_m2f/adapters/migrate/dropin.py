"""Register our parts under the stock names, so that configs of mmseg and mmdet stay as they are."""

import importlib
import logging
from importlib.util import find_spec
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmseg_m2f.adapters.migrate import stock_settings
from mmseg_m2f.adapters.models.decode_head import Mask2FormerHead
from mmseg_m2f.adapters.models.lazy import build_detector
from mmseg_m2f.adapters.models.universal_head import Mask2FormerUniversalHead


def build_semantic_head(**stock: Any) -> Mask2FormerHead:
    """Build our decode head from the arguments of mmseg's ``Mask2FormerHead``."""
    return Mask2FormerHead(**stock_settings.semantic_head(stock))


def build_universal_head(**stock: Any) -> Mask2FormerUniversalHead:
    """Build our head from the arguments of mmdet's ``Mask2FormerHead``."""
    return Mask2FormerUniversalHead(**stock_settings.universal_head(stock))


def build_stock_detector(**stock: Any) -> nn.Module:
    """Build our detector from the arguments of mmdet's ``Mask2Former``."""
    return build_detector(**stock_settings.detector(stock))


_SHADOWS: dict[str, dict[str, Any]] = {
    'mmseg': {'Mask2FormerHead': build_semantic_head},
    'mmdet': {'Mask2FormerHead': build_universal_head, 'Mask2Former': build_stock_detector},
}


def shadow() -> None:
    """Register our parts under the names of the stock ones, in mmseg and mmdet if installed.

    This lasts until the process ends.

    Raises:
        ImportError: neither mmseg nor mmdet can be imported.
    """
    failures: dict[str, Exception] = {}
    for package, parts in _SHADOWS.items():
        try:
            # The stock classes register themselves first: later they would find the names taken.
            importlib.import_module(f'{package}.models')
        except (ImportError, AssertionError) as error:  # both assert the version of mmcv
            failures[package] = error
            continue
        registry = importlib.import_module(f'{package}.registry').MODELS
        for name, part in parts.items():
            registry.register_module(name=name, module=part, force=True)
    if len(failures) == len(_SHADOWS):
        reasons = '; '.join(f'{package}: {error}' for package, error in failures.items())
        raise ImportError(
            f'mmseg_m2f.dropin needs mmseg or mmdet, but neither can be imported ({reasons})'
        )
    for package, failure in failures.items():
        if find_spec(package) is not None:
            print_log(
                f'mmseg_m2f.dropin: {package} cannot be imported ({failure}). Its names stay '
                'the stock ones.',
                logger='current',
                level=logging.WARNING,
            )
