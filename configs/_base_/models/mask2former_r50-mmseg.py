_base_ = './mask2former.py'

model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        # MMSegmentation trains with the statistics of the batch and keeps the weights of the norms.
        norm_cfg=dict(type='SyncBN', requires_grad=False),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    )
)
