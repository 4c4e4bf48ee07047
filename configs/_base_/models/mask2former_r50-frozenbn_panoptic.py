_base_ = './mask2former_panoptic.py'

model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        # Batch norms keep their pre-trained statistics and weights.
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    )
)
