# Batch norm with the pre-trained statistics and affine, none of them trained.
preset_backbone = dict(
    type='ResNet',
    depth=101,
    norm_cfg=dict(type='BN', requires_grad=False),
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
)
preset_in_channels = [256 * 2**i for i in range(4)]
