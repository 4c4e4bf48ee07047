"""MMSegmentation's own Mask2FormerHead on the demo's data, schedule and backbone (needs mmdet)."""

_base_ = ['../_base_/recipes/facade-demo.py', '../_base_/backbones/r18.py']

custom_imports = dict(imports=['mmdet.models'], allow_failed_imports=False)
channels = 128
num_classes = 11
attention = dict(embed_dims=channels, num_heads=8, dropout=0.0, batch_first=True)
position = dict(num_feats=channels // 2, normalize=True)
relu = dict(type='ReLU', inplace=True)
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
    backbone=_base_.preset_backbone,
    decode_head=dict(
        type='Mask2FormerHead',
        in_channels=_base_.preset_in_channels,
        strides=[4, 8, 16, 32],
        feat_channels=channels,
        out_channels=channels,
        num_classes=num_classes,
        num_queries=50,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=3,
                layer_cfg=dict(
                    self_attn_cfg=dict(num_levels=3, num_points=4, **attention),
                    ffn_cfg=dict(
                        embed_dims=channels, feedforward_channels=512, num_fcs=2, act_cfg=relu
                    ),
                ),
            ),
            positional_encoding=position,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=position,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=channels, num_heads=8, batch_first=True),
                cross_attn_cfg=dict(embed_dims=channels, num_heads=8, batch_first=True),
                ffn_cfg=dict(
                    embed_dims=channels, feedforward_channels=512, num_fcs=2, act_cfg=relu
                ),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            loss_weight=2.0,
            class_weight=[1.0] * num_classes + [0.1],
        ),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(
            type='mmdet.DiceLoss',
            use_sigmoid=True,
            activate=True,
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=4096,
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
