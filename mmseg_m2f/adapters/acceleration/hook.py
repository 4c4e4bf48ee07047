"""The hook that accelerates the model of a run."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmseg_m2f
from mmseg_m2f.adapters.acceleration.swap import is_accelerated
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class AccelerateHook(Hook):
    """Call ``mmseg_m2f.accelerate(model, points)`` before a run trains, validates or tests.

    Raises:
        CannotAccelerateError: when a run starts, the part of its model that cannot be swapped.
    """

    # Before the hook that writes down the head's configuration.
    priority = 'VERY_HIGH'

    def __init__(self, points: str = 'shared') -> None:
        self.points = points

    def before_run(self, runner: Runner) -> None:
        """Accelerate the model, unless an earlier run has done so."""
        if not is_accelerated(runner.model):
            mmseg_m2f.accelerate(runner.model, self.points)
