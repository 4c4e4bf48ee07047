# Pre-trained on ImageNet-22k at 384 pixels.
_base_ = './mask2former_panoptic.py'

model = dict(
    backbone=dict(
        type='SwinTransformer',
        pretrain_img_size=384,
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        drop_path_rate=0.3,
        # The file has Microsoft's names. Our loader converts them; mmdet's own loader needs this
        # key.
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_base_patch4_window12_384_22k.pth',
        ),
    )
)
