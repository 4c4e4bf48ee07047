"""The bridge to OpenMMLab: the only package here that imports mmengine, mmcv, mmseg or mmdet.

Importing it registers every part in the scope ``mmseg_m2f``, offers mmcv's operator to ``ops``,
puts the safe checkpoint loader in the place of MMEngine's and lets models with our heads load any
known layout. MMEngine imports it by itself when it builds the first ``mmseg_m2f.X``; our configs
import it earlier, by ``custom_imports``.
"""

from mmseg_m2f.adapters import (
    accelerate,
    amp,
    channels_last,
    class_check,
    data,
    hooks,
    instance_metrics,
    keep_memory,
    metrics,
    optim,
    parts,
    prediction_files,
    prepare_inference,
    result_files,
    semantic,
    transforms,
    tta,
    universal,
)
from mmseg_m2f.adapters.checkpoint_io import install_safe_loader
from mmseg_m2f.adapters.kernels import check_mmseg_imports, offer_mmcv_operator
from mmseg_m2f.adapters.load_hooks import watch_for_heads

check_mmseg_imports()
offer_mmcv_operator()
install_safe_loader()
watch_for_heads()

__all__ = [
    'accelerate',
    'amp',
    'channels_last',
    'class_check',
    'data',
    'hooks',
    'instance_metrics',
    'keep_memory',
    'metrics',
    'optim',
    'parts',
    'prediction_files',
    'prepare_inference',
    'result_files',
    'semantic',
    'transforms',
    'tta',
    'universal',
]
