"""Mask2Former for MMSegmentation and MMDetection. Importing this package loads no framework."""

__version__ = '0.1.0'
