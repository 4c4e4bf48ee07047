# MMDetection's own Mask2Former in the sizes of the demo's model. What depends on the classes is
# left to the config: num_things_classes, num_stuff_classes and the class weights.
channels = 128
num_queries = 40
num_decoder_layers = 3
attention = dict(embed_dims=channels, num_heads=8, batch_first=True)
feed_forward = dict(embed_dims=channels, feedforward_channels=256)
encoder_layer = dict(
    self_attn_cfg=dict(num_levels=3, num_points=4, dropout=0.0, **attention), ffn_cfg=feed_forward
)
decoder_layer = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward)
position = dict(num_feats=channels // 2, normalize=True)
preset_mmdet_head = dict(
    type='mmdet.Mask2FormerHead',
    in_channels=[64, 128, 256, 512],
    strides=[4, 8, 16, 32],
    feat_channels=channels,
    out_channels=channels,
    num_queries=num_queries,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=32),
        act_cfg=dict(type='ReLU'),
        encoder=dict(num_layers=1, layer_cfg=encoder_layer),
        positional_encoding=position,
    ),
    enforce_decoder_input_project=False,
    positional_encoding=position,
    transformer_decoder=dict(
        return_intermediate=True, num_layers=num_decoder_layers, layer_cfg=decoder_layer
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
)
preset_mmdet_class_loss = dict(
    type='mmdet.CrossEntropyLoss', use_sigmoid=False, reduction='mean', loss_weight=2.0
)
preset_mmdet_train_cfg = dict(
    num_points=2048,
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
)
del channels, num_queries, num_decoder_layers, attention, feed_forward
del encoder_layer, decoder_layer, position
