# All three results from one model. The thresholds are for panoptic segments.
_base_ = './universal.py'

model = dict(
    test_cfg=dict(
        semantic_on=True,
        instance_on=True,
        panoptic_on=True,
        object_mask_thr=0.8,
        overlap_thr=0.8,
    )
)
