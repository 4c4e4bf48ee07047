# From scratch: nothing is downloaded, and the statistics of the batches count (mmdet's default
# would keep those of the start).
preset_backbone = dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'), norm_eval=False)
preset_in_channels = [64 * 2**i for i in range(4)]
