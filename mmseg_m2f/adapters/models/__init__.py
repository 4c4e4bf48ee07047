"""Heads, detector, segmentor and their parts, built from configs."""
