"""Opt-in by import: stock Mask2Former configs of mmseg and mmdet build on our parts.

``custom_imports = dict(imports=['mmseg_m2f.dropin'])`` in the config is all it takes. It lasts for
the process: every later ``Mask2FormerHead`` of mmseg or mmdet, and every ``Mask2Former``, is ours.
"""

from mmseg_m2f.adapters.migrate import dropin

dropin.shadow()
