# Batch norm over all GPUs, trained.
preset_backbone = dict(
    type='ResNet',
    depth=50,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    norm_eval=False,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
preset_in_channels = [256 * 2**i for i in range(4)]
