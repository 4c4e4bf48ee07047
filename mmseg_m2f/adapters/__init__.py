"""The bridge to OpenMMLab: the only package here that imports mmengine, mmcv, mmseg or mmdet.

Importing it registers every part in the scope ``mmseg_m2f``, offers mmcv's operator to ``ops``,
puts the safe checkpoint loader in the place of MMEngine's and lets models with our heads load any
known layout. MMEngine imports it by itself when it builds the first ``mmseg_m2f.X``; our configs
import it earlier, by ``custom_imports``.
"""

from mmseg_m2f.adapters import data
from mmseg_m2f.adapters.acceleration import accelerate
from mmseg_m2f.adapters.checkpoints.hooks import watch_for_heads
from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader
from mmseg_m2f.adapters.data import label_maps
from mmseg_m2f.adapters.inference import channels_last, prepare
from mmseg_m2f.adapters.metrics import instance, panoptic
from mmseg_m2f.adapters.models import decode_head, parts, tta, universal_head
from mmseg_m2f.adapters.models.mmcv_attention import check_mmseg_imports, offer_mmcv_operator
from mmseg_m2f.adapters.results import overlays, submissions
from mmseg_m2f.adapters.training import amp, keep_memory, optimizer, resume, run_check

check_mmseg_imports()
offer_mmcv_operator()
install_safe_loader()
watch_for_heads()

__all__ = [
    'accelerate',
    'amp',
    'channels_last',
    'data',
    'decode_head',
    'instance',
    'keep_memory',
    'label_maps',
    'optimizer',
    'overlays',
    'panoptic',
    'parts',
    'prepare',
    'resume',
    'run_check',
    'submissions',
    'tta',
    'universal_head',
]
