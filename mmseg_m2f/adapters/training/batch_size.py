"""State the batch size of an update, for which the learning rate is made."""

from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class BatchSizeHook(Hook):
    """Log how many images one update sees, and warn if the learning rate is for another number.

    One update sees processes x images x accumulated steps. The learning rate of a config is made
    for ``auto_scale_lr.base_batch_size``.
    """

    def before_train(self, runner: Runner) -> None:
        """Log the batch size of this run."""
        _, world_size = get_dist_info()
        loader = runner.train_dataloader
        batch_size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if batch_size is None:
            return
        total = world_size * batch_size * steps
        runner.logger.info(
            f'one update sees {total} images: {world_size} process(es) x {batch_size} x '
            f'{steps} accumulated step(s)'
        )
        scale = runner.auto_scale_lr or {}
        base = scale.get('base_batch_size')
        # MMEngine scales by processes x images and leaves the accumulated steps out.
        scaled_for = world_size * batch_size if scale.get('enable') else base
        if base and total != scaled_for:
            runner.logger.warning(
                f'the learning rate is made for {scaled_for} images per update, but an update '
                f'sees {total}: consider {total / scaled_for:g} times the learning rate and '
                f'{scaled_for / total:g} times the iterations'
            )
