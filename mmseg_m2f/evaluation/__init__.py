"""Metrics as functions of arrays: panoptic quality, IoU, COCO's and Cityscapes' average precision.

No framework and no torch. Packages that only one metric needs are imported when it is used.
"""
