"""Data sets and transforms of instance and panoptic segmentation that the frameworks lack."""
