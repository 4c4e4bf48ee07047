# Mask2Former for instance segmentation in MMDetection, without a backbone. Every class is a thing.
_base_ = './mask2former_panoptic.py'

model = dict(test_cfg=dict(_delete_=True, semantic_on=False, instance_on=True, panoptic_on=False))
