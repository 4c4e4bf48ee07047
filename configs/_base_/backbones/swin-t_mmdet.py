# The weights for MMDetection's class, which converts the original file; it takes nothing from the
# file for MMSegmentation's.
_base_ = './swin-t.py'

preset_backbone = dict(
    convert_weights=True,
    init_cfg=dict(
        checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
        'swin_tiny_patch4_window7_224.pth',
    ),
)
