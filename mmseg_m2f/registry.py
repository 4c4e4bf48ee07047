"""The registries of scope ``mmseg_m2f``: children of MMEngine's root registries.

A config names our classes with this scope: ``type='mmseg_m2f.Mask2FormerHead'``. MMEngine then
imports this module and, at the first look-up, the ``locations``, which register the classes.
"""

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = 'mmseg_m2f'
_LOCATIONS = ['mmseg_m2f.adapters']


def _child(parent: Registry) -> Registry:
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=_LOCATIONS)


MODELS = _child(root.MODELS)
TASK_UTILS = _child(root.TASK_UTILS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS)
HOOKS = _child(root.HOOKS)
TRANSFORMS = _child(root.TRANSFORMS)
DATASETS = _child(root.DATASETS)
METRICS = _child(root.METRICS)
VISUALIZERS = _child(root.VISUALIZERS)
