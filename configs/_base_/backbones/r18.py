# From scratch: nothing is downloaded.
preset_backbone = dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'))
preset_in_channels = [64 * 2**i for i in range(4)]
