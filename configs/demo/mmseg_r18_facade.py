"""MMSegmentation's own Mask2Former head in the place of the demo's (needs mmdet): a comparison."""

_base_ = [
    '../_base_/datasets/facade.py',
    '../_base_/schedules/adamw_demo.py',
    '../_base_/default_runtime.py',
]

# The head builds parts of mmdet.
custom_imports = dict(imports=['mmseg_m2f.adapters', 'mmdet.models'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=_base_.crop_size,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'), norm_eval=False),
    decode_head=dict(
        type='mmseg.Mask2FormerHead',
        num_classes=11,
        in_channels=[64, 128, 256, 512],
        strides=[4, 8, 16, 32],
        feat_channels=64,
        out_channels=64,
        num_queries=20,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=64,
                        num_heads=8,
                        num_levels=3,
                        num_points=4,
                        dropout=0.0,
                        batch_first=True,
                    ),
                    ffn_cfg=dict(embed_dims=64, feedforward_channels=256),
                ),
            ),
            positional_encoding=dict(num_feats=32, normalize=True),
        ),
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=32, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=64, num_heads=8, batch_first=True),
                cross_attn_cfg=dict(embed_dims=64, num_heads=8, batch_first=True),
                ffn_cfg=dict(embed_dims=64, feedforward_channels=256),
            ),
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            reduction='mean',
            loss_weight=2.0,
            class_weight=[1.0] * 11 + [0.1],
        ),
        loss_mask=dict(
            type='mmdet.CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0
        ),
        loss_dice=dict(
            type='mmdet.DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=1024,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=2.0),
                    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
tta_model = dict(type='mmseg_m2f.SemanticTTAModel')
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
# Two runs on one machine give the same numbers.
randomness = dict(seed=0)
