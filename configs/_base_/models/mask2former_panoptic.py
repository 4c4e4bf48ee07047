# Mask2Former for panoptic segmentation in MMDetection, without a backbone. One model gives panoptic
# segments, instances and label maps.
model = dict(
    type='mmseg_m2f.Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        # The head pads the masks of its targets itself.
        pad_mask=False,
    ),
    panoptic_head=dict(type='mmseg_m2f.Mask2FormerUniversalHead'),
    test_cfg=dict(
        semantic_on=True,
        instance_on=True,
        panoptic_on=True,
        object_mask_thr=0.8,
        overlap_thr=0.8,
    ),
)
