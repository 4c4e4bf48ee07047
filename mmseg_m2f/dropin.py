"""Build the stock Mask2Former configs of mmseg and mmdet on our parts, by importing this module.

One line in the config is enough: ``custom_imports = dict(imports=['mmseg_m2f.dropin'])``. From then
on, until the process ends, every ``Mask2FormerHead`` of mmseg or mmdet and every ``Mask2Former`` is
ours.
"""

from mmseg_m2f.adapters.migrate import dropin

dropin.shadow()
