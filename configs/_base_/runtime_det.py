# What MMDetection's models need beside runtime.py.
_base_ = './runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    # Of names with a prefix MMEngine cannot tell which way is better.
    checkpoint=dict(rule='greater'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(type='mmseg_m2f.Mask2FormerVisualizer')
