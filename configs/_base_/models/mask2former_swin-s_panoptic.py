# Pre-trained on ImageNet-1k at 224 pixels.
_base_ = './mask2former_panoptic.py'

model = dict(
    backbone=dict(
        type='SwinTransformer',
        pretrain_img_size=224,
        embed_dims=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.3,
        # The file has Microsoft's names. Our loader converts them; mmdet's own loader needs this
        # key.
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_small_patch4_window7_224.pth',
        ),
    )
)
