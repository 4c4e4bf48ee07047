"""Metrics as functions of arrays: panoptic quality, mIoU, AP of COCO and of Cityscapes.

Nothing here imports a framework or torch. A package that only one metric needs is imported when
this metric is used.
"""
