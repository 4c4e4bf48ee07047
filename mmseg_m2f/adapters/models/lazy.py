"""Register our segmentor and detector without importing mmseg or mmdet.

Each builder imports its framework when a config asks for the model, so that users of one framework
need not install the other.
"""

from typing import Any

from torch import nn

from mmseg_m2f.adapters.models.missing import import_failure
from mmseg_m2f.registry import MODELS


@MODELS.register_module(name='SemanticSegmentor')
def build_segmentor(**keys: Any) -> nn.Module:
    """Build `SemanticSegmentor`, a segmentor of MMSegmentation.

    Raises:
        ImportError: mmseg is not installed; the message says what to install.
        MissingOperatorsError: mmseg is installed, but it needs mmcv's operators.
    """
    try:
        from mmseg_m2f.adapters.models.segmentor import SemanticSegmentor
    except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
        raise import_failure(
            'MMSegmentation',
            error,
            'mmseg_m2f.SemanticSegmentor needs MMSegmentation, which cannot be imported '
            f'({error}). Install it: pip install onedl-mmsegmentation (onedl stack) or pip install '
            'mmsegmentation (upstream). mmseg_m2f.Mask2Former needs MMDetection instead.',
        ) from error
    return SemanticSegmentor(**keys)


@MODELS.register_module(name='Mask2Former')
def build_detector(**keys: Any) -> nn.Module:
    """Build `Mask2Former`, a detector of MMDetection.

    Raises:
        ImportError: mmdet is not installed; the message says what to install.
        MissingOperatorsError: mmdet is installed, but mmcv's operators are not.
    """
    try:
        from mmseg_m2f.adapters.models.detector import Mask2Former
    except (ImportError, AssertionError) as error:  # mmdet asserts the version of mmcv
        raise import_failure(
            'MMDetection',
            error,
            f'mmseg_m2f.Mask2Former needs MMDetection, which cannot be imported ({error}). '
            'Install it: pip install onedl-mmdetection (onedl stack) or pip install mmdet '
            '(upstream). mmseg_m2f.SemanticSegmentor needs MMSegmentation instead.',
        ) from error
    return Mask2Former(**keys)
