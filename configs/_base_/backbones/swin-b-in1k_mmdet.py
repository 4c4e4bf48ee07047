# The weights for MMDetection's class, which converts the original file; it takes nothing from the
# file for MMSegmentation's.
_base_ = './swin-b-in1k.py'

preset_backbone = dict(
    convert_weights=True,
    init_cfg=dict(
        checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
        'swin_base_patch4_window12_384.pth',
    ),
)
