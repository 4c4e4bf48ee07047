# The runtime of the instance and panoptic models (MMDetection). It changes a few settings of the
# runtime of the semantic models (MMSegmentation).
_base_ = './default_runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    # MMEngine cannot guess from names such as coco_panoptic/PQ that greater is better.
    checkpoint=dict(rule='greater'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(type='mmseg_m2f.Mask2FormerVisualizer')
