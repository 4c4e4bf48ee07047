# Instances alone: all classes are things.
_base_ = './universal.py'

model = dict(test_cfg=dict(semantic_on=False, instance_on=True, panoptic_on=False))
