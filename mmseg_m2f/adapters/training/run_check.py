"""A hook that compares data, head and metrics before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_m2f.adapters.things import thing_ids_of
from mmseg_m2f.adapters.training.evaluation_check import check_evaluation
from mmseg_m2f.adapters.training.resume import resolved_head_config
from mmseg_m2f.registry import HOOKS

_LOADERS = ('train', 'val', 'test')
# How many classes a message names.
_MAX_NAMED = 8


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stops a run whose data set has other classes, or other things, than the head, or whose
    metrics ask for a result that is switched off or for files that are missing.

    A data set tells its ``classes`` and, for panoptic models, its ``thing_ids`` (or mmdet's
    ``thing_classes``) in ``metainfo``; what it does not tell is not checked.
    """

    def before_run(self, runner: Runner) -> None:
        """Checks the data sets of all loops that are about to run.

        Raises:
            ValueError: the classes, or the things among them, differ; or a metric needs a result
                that ``test_cfg`` switches off.
            FileNotFoundError: a file is missing that a metric will read.
        """
        check_evaluation(runner)
        config = resolved_head_config(runner.model)
        if config is None or 'num_classes' not in config:
            return
        for loader, metainfo in _metainfos(runner):
            _check_count(loader, metainfo, config)
            _check_things(loader, metainfo, config)


def _metainfos(runner: Runner) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the data sets of the loops built by now tell of themselves."""
    for name in _LOADERS:
        # A loop that is not part of this run is still a dict, or None.
        loader = getattr(getattr(runner, f'_{name}_loop'), 'dataloader', None)
        metainfo = getattr(getattr(loader, 'dataset', None), 'metainfo', None)
        if metainfo:
            yield f'{name}_dataloader', metainfo


def _check_count(loader: str, metainfo: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    classes, num_classes = metainfo.get('classes'), config['num_classes']
    if not classes or len(classes) == num_classes:
        return
    if num_classes == 1 and len(classes) == 2 and 'thing_ids' not in config:
        return  # mmseg's single class: background and foreground
    raise ValueError(
        f'the data set of {loader} has {len(classes)} classes ({_names(classes)}), the head '
        f'num_classes={num_classes}: set num_classes={len(classes)} on the head, or the classes '
        "in the data set's metainfo"
    )


def _check_things(loader: str, metainfo: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    thing_ids = thing_ids_of(metainfo)
    if thing_ids is None or 'thing_ids' not in config:
        return
    classes = metainfo.get('classes') or [f'class {i}' for i in range(config['num_classes'])]
    of_data, of_head = set(thing_ids), set(config['thing_ids'])
    differing = [
        f'things in {where} only: {_names([f"{i} {classes[i]}" for i in sorted(ids)])}'
        for where, ids in (('the data set', of_data - of_head), ('the head', of_head - of_data))
        if ids
    ]
    if differing:
        raise ValueError(
            f'the data set of {loader} and the head disagree about what is a thing; '
            f'{"; ".join(differing)}. Set thing_ids={sorted(of_data)} on the head'
        )


def _names(names: Sequence[str]) -> str:
    shown = ', '.join(map(str, names[:_MAX_NAMED]))
    return f'{shown}, ...' if len(names) > _MAX_NAMED else shown
