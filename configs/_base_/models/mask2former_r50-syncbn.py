_base_ = './mask2former.py'

model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        # Batch norms are trained, with statistics over all GPUs.
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    )
)
