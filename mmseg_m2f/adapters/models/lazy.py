"""Register our segmentor and detector without importing mmseg or mmdet.

Each builder imports its framework when a config asks for the model, so that users of one framework
need not install the other. What cannot be imported is named, with what to install.
"""

import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

from mmseg_m2f.registry import MODELS


class MissingOperatorsError(RuntimeError):
    """mmcv is installed without its compiled operators, and ``what`` needs them."""

    def __init__(self, what: str, cause: ImportError) -> None:
        super().__init__(
            f"{what} needs mmcv's compiled operators, which are not installed ({cause}). To "
            'build them you need torch, ninja and a C++ compiler: MMCV_WITH_OPS=1 pip install '
            '--no-build-isolation --no-cache-dir --force-reinstall --no-deps mmcv==2.1.0 '
            '(onedl stack: onedl-mmcv==2.3.6; its MMSegmentation runs without the operators).'
        )


@MODELS.register_module(name='SemanticSegmentor')
def build_segmentor(**keys: Any) -> nn.Module:
    """Build `SemanticSegmentor`, a segmentor of MMSegmentation."""
    advice = 'pip install onedl-mmsegmentation (onedl stack) or mmsegmentation (upstream).'
    module = import_for('MMSegmentation', 'mmseg_m2f.adapters.models.segmentor', advice)
    return module.SemanticSegmentor(**keys)


@MODELS.register_module(name='Mask2Former')
def build_detector(**keys: Any) -> nn.Module:
    """Build `Mask2Former`, a detector of MMDetection."""
    advice = 'pip install onedl-mmdetection (onedl stack) or mmdet (upstream).'
    module = import_for('MMDetection', 'mmseg_m2f.adapters.models.detector', advice)
    return module.Mask2Former(**keys)


def check_mmseg_imports() -> None:
    """Check that mmseg, if installed, does not fail to import for lack of mmcv's operators.

    Upstream MMSegmentation needs them, the onedl distribution does not.
    """
    if find_spec('mmcv._ext') is None and find_spec('mmseg') is not None:
        import_for('MMSegmentation', 'mmseg.models', 'Repair or uninstall it.')


def import_for(framework: str, module: str, advice: str) -> ModuleType:
    """Import ``module``, which needs ``framework``."""
    try:
        return importlib.import_module(module)
    except (ImportError, AssertionError) as error:  # the frameworks assert the version of mmcv
        if isinstance(error, ImportError) and '_ext' in str(error):
            raise MissingOperatorsError(framework, error) from error
        raise ImportError(f'{framework} cannot be imported ({error}). {advice}') from error
