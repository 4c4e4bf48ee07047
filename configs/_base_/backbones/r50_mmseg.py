# MMSegmentation's setting: statistics of the batch over all GPUs, affine as pre-trained.
preset_backbone = dict(
    type='ResNet',
    depth=50,
    norm_cfg=dict(type='SyncBN', requires_grad=False),
    norm_eval=False,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
preset_in_channels = [256 * 2**i for i in range(4)]
