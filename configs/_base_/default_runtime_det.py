# MMDetection's models on top of the runtime of MMSegmentation's.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    # MMEngine cannot tell from a name with a prefix whether greater is better.
    checkpoint=dict(rule='greater'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(type='mmseg_m2f.Mask2FormerVisualizer')
