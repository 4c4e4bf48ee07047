"""The demo's model with MMSegmentation's own Mask2Former head (needs mmdet): a comparison."""

_base_ = './mask2former_r18_facade.py'

# The head looks up mmdet's parts; the first entry is the base's.
custom_imports = dict(imports=['mmseg_m2f.adapters', 'mmdet.models'])

head = _base_.model.decode_head
channels = head.pixel_decoder.channels
num_heads = 8
attention = dict(embed_dims=channels, num_heads=num_heads, batch_first=True)
encoder_layer = dict(
    self_attn_cfg=dict(num_levels=3, num_points=4, dropout=0.0, **attention),
    ffn_cfg=dict(embed_dims=channels, feedforward_channels=head.pixel_decoder.ffn_dim),
)
decoder_layer = dict(
    self_attn_cfg=attention,
    cross_attn_cfg=attention,
    ffn_cfg=dict(embed_dims=channels, feedforward_channels=head.decoder.ffn_dim),
)
position = dict(num_feats=channels // 2, normalize=True)
cross_entropy = dict(type='mmdet.CrossEntropyLoss', reduction='mean')
costs = [
    dict(type='mmdet.ClassificationCost', weight=2.0),
    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
]
# As its users train on a CPU: in float32, MMEngine's own AMP refuses one.
optim_wrapper = dict(dtype='float16')
ours_alone = 'ChannelsLastHook'
custom_hooks = [hook for hook in _base_.custom_hooks if not hook.type.endswith(ours_alone)]
model = dict(
    type='EncoderDecoder',
    decode_head=dict(
        _delete_=True,
        type='mmseg.Mask2FormerHead',
        num_classes=head.num_classes,
        in_channels=head.in_channels,
        strides=[4, 8, 16, 32],
        feat_channels=channels,
        out_channels=channels,
        num_queries=head.num_queries,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(num_layers=head.pixel_decoder.num_layers, layer_cfg=encoder_layer),
            positional_encoding=position,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=position,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=head.decoder.num_layers,
            layer_cfg=decoder_layer,
        ),
        loss_cls=dict(
            use_sigmoid=False,
            loss_weight=2.0,
            class_weight=[1.0] * head.num_classes + [0.1],
            **cross_entropy,
        ),
        loss_mask=dict(use_sigmoid=True, loss_weight=5.0, **cross_entropy),
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
            num_points=head.losses.points.num_points,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(type='mmdet.HungarianAssigner', match_costs=costs),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
)
del head, channels, num_heads, attention, encoder_layer, decoder_layer
del position, cross_entropy, costs, ours_alone
