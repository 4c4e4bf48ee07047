# The detector of both tasks; which results it gives is the task's.
model = dict(
    type='mmseg_m2f.Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        # With 0 after normalisation: the mean color. The head pads its targets itself.
        pad_size_divisor=32,
        pad_mask=False,
    ),
    panoptic_head=dict(type='mmseg_m2f.Mask2FormerUniversalHead'),
)
