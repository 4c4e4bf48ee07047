# Pre-trained on ImageNet-1k at 224 pixels.
_base_ = './mask2former.py'

model = dict(
    backbone=dict(
        type='SwinTransformer',
        pretrain_img_size=224,
        embed_dims=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/'
            'swin_small_patch4_window7_224_20220317-7ba6d6dd.pth',
        ),
    )
)
