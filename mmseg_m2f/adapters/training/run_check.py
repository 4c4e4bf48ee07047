"""Compare data, head and metrics before a run: mistakes show at once, not after hours."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmengine.fileio import exists
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmseg_m2f import core
from mmseg_m2f.adapters.data import InstanceDataset, PanopticDataset
from mmseg_m2f.adapters.things import thing_ids_of
from mmseg_m2f.adapters.training.head_config import resolved_head_config
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stop a run whose data, head and metrics do not fit together.

    The classes and things of a data set must be those of the head. A data set tells ``classes``
    and, for panoptic models, ``thing_ids`` (or mmdet's ``thing_classes``) in its ``metainfo``; what
    it does not tell is not checked. The results and files that a metric reads must exist.
    """

    def before_run(self, runner: Runner) -> None:
        """Check the loops of this run; raise ``ValueError`` or ``FileNotFoundError``."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        config = resolved_head_config(model)
        for name in ('train', 'val', 'test'):
            # A loop that is not part of this run is still a dict, or None.
            loop = getattr(runner, f'_{name}_loop')
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                metric_name = f'{type(metric).__name__} of {name}_evaluator'
                _check_result(metric_name, metric, getattr(model, 'test_cfg', None))
                _check_files(metric_name, metric, dataset)
            metainfo = getattr(dataset, 'metainfo', None)
            if metainfo and config and 'num_classes' in config:
                data_name = f'the data set of {name}_dataloader'
                _check_count(data_name, metainfo.get('classes'), config)
                _check_things(data_name, metainfo, config)


@HOOKS.register_module()
class BatchSizeHook(Hook):
    """Log how many images one update sees, and warn if the learning rate is for another number.

    One update sees processes x images x accumulated steps. The learning rate of a config is made
    for ``auto_scale_lr.base_batch_size``.
    """

    def before_train(self, runner: Runner) -> None:
        """Log the batch size of this run."""
        loader = runner.train_dataloader
        batch_size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
        if batch_size is None:
            return
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        total = get_world_size() * batch_size * steps
        runner.logger.info(
            f'one update sees {total} images: {get_world_size()} process(es) x {batch_size} x '
            f'{steps} accumulated step(s)'
        )
        scale = runner.auto_scale_lr or {}
        base = scale.get('base_batch_size')
        # MMEngine scales by processes x images and leaves the accumulated steps out.
        scaled_for = total // steps if scale.get('enable') else base
        if base and total != scaled_for:
            runner.logger.warning(
                f'the learning rate is made for {scaled_for} images per update, but an update '
                f'sees {total}: consider {total / scaled_for:g} times the learning rate and '
                f'{scaled_for / total:g} times the iterations'
            )


def _check_result(name: str, metric: Any, config: Any) -> None:
    needed = getattr(metric, 'needs', None)
    if needed and isinstance(config, core.PostprocessConfig) and not getattr(config, needed):
        raise ValueError(
            f'{name} needs a result that model.test_cfg.{needed}=False switches off. Set it to '
            'True, or remove the metric.'
        )


def _check_files(name: str, metric: Any, dataset: Any) -> None:
    """Check that the files exist, for the first image only."""
    is_ours = isinstance(dataset, PanopticDataset | InstanceDataset)
    record = dataset.get_data_info(0) if is_ours and len(dataset) else {}
    for path, hint in metric.truth_files(record) if hasattr(metric, 'truth_files') else ():
        if not exists(path):
            raise FileNotFoundError(f'{name} reads {path}, which does not exist. {hint}')


def _check_count(name: str, classes: Sequence[str] | None, config: Mapping[str, Any]) -> None:
    num_classes = config['num_classes']
    if not classes or len(classes) == num_classes:
        return
    if num_classes == 1 and len(classes) == 2 and 'thing_ids' not in config:
        return  # mmseg's single class: background and foreground
    shown = ', '.join([*map(str, classes[:8]), *(['...'] if len(classes) > 8 else [])])
    raise ValueError(
        f'{name} has {len(classes)} classes ({shown}), but the head has num_classes={num_classes}. '
        f"Set num_classes={len(classes)} on the head, or set the classes in the data set's metainfo"
    )


def _check_things(name: str, metainfo: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    thing_ids = thing_ids_of(metainfo)
    if thing_ids is None or 'thing_ids' not in config:
        return
    classes = metainfo.get('classes') or [f'class {i}' for i in range(config['num_classes'])]
    data, head = set(thing_ids), set(config['thing_ids'])
    if data != head:
        in_data, in_head = (
            ', '.join(f'{i} {classes[i]}' for i in sorted(ids)) or 'none'
            for ids in (data - head, head - data)
        )
        raise ValueError(
            f'{name} and the head disagree about what is a thing: only in the data set: {in_data}; '
            f'only in the head: {in_head}. Set thing_ids={sorted(data)} on the head.'
        )
