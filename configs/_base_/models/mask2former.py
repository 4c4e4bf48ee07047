# Mask2Former for semantic segmentation in MMSegmentation, without a backbone.
model = dict(
    type='mmseg_m2f.SemanticSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        # Images are padded after normalization, where 0 is the mean color.
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    decode_head=dict(type='mmseg_m2f.Mask2FormerHead'),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
tta_model = dict(type='mmseg_m2f.SemanticTTAModel')
