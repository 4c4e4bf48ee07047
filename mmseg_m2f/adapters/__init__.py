"""The bridge to OpenMMLab: mmengine, mmcv, mmseg and mmdet are imported here.

Importing it registers every part in the scope ``mmseg_m2f``, offers mmcv's operator to ``ops``,
puts the safe checkpoint loader in the place of MMEngine's and lets models with our heads load any
known layout. MMEngine imports it by itself when it builds the first ``mmseg_m2f.X``; our configs
import it earlier, by ``custom_imports``.
"""

from mmseg_m2f.adapters import acceleration, data, inference, metrics, models, results, training
from mmseg_m2f.adapters.checkpoints.hooks import watch_for_heads
from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader
from mmseg_m2f.adapters.models.lazy import check_mmseg_imports
from mmseg_m2f.adapters.models.mmcv_attention import offer_mmcv_operator

check_mmseg_imports()
offer_mmcv_operator()
install_safe_loader()
watch_for_heads()

__all__ = ['acceleration', 'data', 'inference', 'metrics', 'models', 'results', 'training']
