"""Run stock Mask2Former configs of mmseg and mmdet on our parts."""
