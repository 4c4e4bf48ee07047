"""Register our segmentor and detector without importing mmseg or mmdet.

Each builder imports its framework when a config asks for the model, so that users of one framework
need not install the other.
"""

from typing import Any

from torch import nn

from mmseg_m2f.adapters.models.missing import import_for
from mmseg_m2f.registry import MODELS


@MODELS.register_module(name='SemanticSegmentor')
def build_segmentor(**keys: Any) -> nn.Module:
    """Build `SemanticSegmentor`, a segmentor of MMSegmentation.

    Raises:
        ImportError: mmseg cannot be imported; the message says what to install.
        MissingOperatorsError: mmseg needs mmcv's operators, which are not installed.
    """
    module = import_for(
        'MMSegmentation',
        'mmseg_m2f.adapters.models.segmentor',
        'mmseg_m2f.SemanticSegmentor needs it: pip install onedl-mmsegmentation (onedl stack) or '
        'pip install mmsegmentation (upstream). mmseg_m2f.Mask2Former needs MMDetection instead.',
    )
    return module.SemanticSegmentor(**keys)


@MODELS.register_module(name='Mask2Former')
def build_detector(**keys: Any) -> nn.Module:
    """Build `Mask2Former`, a detector of MMDetection.

    Raises:
        ImportError: mmdet cannot be imported; the message says what to install.
        MissingOperatorsError: mmdet needs mmcv's operators, which are not installed.
    """
    module = import_for(
        'MMDetection',
        'mmseg_m2f.adapters.models.detector',
        'mmseg_m2f.Mask2Former needs it: pip install onedl-mmdetection (onedl stack) or pip '
        'install mmdet (upstream). mmseg_m2f.SemanticSegmentor needs MMSegmentation instead.',
    )
    return module.Mask2Former(**keys)
