"""Let mmdet's ``DetInferencer`` work without the package panopticapi."""

import sys
from typing import Any

from mmseg_m2f.evaluation.panoptic_map import id2rgb

VOID = 0


def replace_panopticapi() -> None:
    """Let mmdet's ``DetInferencer`` return panoptic results without the package panopticapi.

    The inferencer takes two names from panopticapi, which no package index has: the id of void
    and the color code of segment ids. Without the package both are None, and it refuses every
    panoptic result. This sets them to the same values, and changes nothing if the package is
    installed or the inferencer is not in use.
    """
    inferencer: Any = sys.modules.get('mmdet.apis.det_inferencer')
    if inferencer is not None and inferencer.VOID is None:
        inferencer.VOID, inferencer.id2rgb = VOID, id2rgb
