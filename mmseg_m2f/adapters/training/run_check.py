"""Compare data, head and metrics before a run: mistakes show at once, not after hours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.fileio import exists
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.data.instance import InstanceDataset
from mmseg_m2f.adapters.data.panoptic import PanopticDataset
from mmseg_m2f.adapters.things import thing_ids_of
from mmseg_m2f.adapters.training.head_config import resolved_head_config
from mmseg_m2f.registry import HOOKS

_LOADERS = ('train', 'val', 'test')
_EVALUATIONS = ('val', 'test')
# The most classes that a message names.
_MAX_NAMED = 8


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stop a run whose data, head and metrics do not fit together.

    The classes and things of a data set must be those of the head. The results and files that a
    metric reads must exist. A data set tells ``classes`` and, for panoptic models, ``thing_ids``
    (or mmdet's ``thing_classes``) in its ``metainfo``; what it does not tell is not checked.
    """

    def before_run(self, runner: Runner) -> None:
        """Check the loops that are about to run.

        Raises:
            ValueError: the classes, or the things among them, differ; or ``test_cfg`` switches a
                result off that a metric needs.
            FileNotFoundError: a file is missing that a metric will read.
        """
        for name in _EVALUATIONS:
            _check_evaluation(runner, name)
        config = resolved_head_config(runner.model)
        if config is None or 'num_classes' not in config:
            return
        for loader, metainfo in _metainfos(runner):
            _check_count(loader, metainfo, config)
            _check_things(loader, metainfo, config)


def _check_evaluation(runner: Runner, name: str) -> None:
    """Check what the metrics of the loop ``name`` need; files for the first image only."""
    loop = getattr(runner, f'_{name}_loop')
    metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', ())
    record = _first_record(getattr(loop, 'dataloader', None))
    for metric in metrics:
        _check_result(f'{name}_evaluator', metric, runner.model)
        _check_files(f'{name}_evaluator', metric, record)


def _check_result(evaluator: str, metric: Any, model: nn.Module) -> None:
    needed = getattr(metric, 'needs', None)
    config = getattr(model.module if is_model_wrapper(model) else model, 'test_cfg', None)
    if needed and isinstance(config, core.PostprocessConfig) and not getattr(config, needed):
        raise ValueError(
            f'{type(metric).__name__} of {evaluator} needs a result that '
            f'model.test_cfg.{needed}=False switches off. Set it to True, or remove the metric '
            f'from {evaluator}.'
        )


def _check_files(evaluator: str, metric: Any, record: Mapping[str, Any]) -> None:
    truth_files = getattr(metric, 'truth_files', None)
    for path, hint in truth_files(record) if truth_files is not None else ():
        if not exists(path):
            raise FileNotFoundError(
                f'{type(metric).__name__} of {evaluator} reads {path}, which does not exist. {hint}'
            )


def _first_record(loader: Any) -> Mapping[str, Any]:
    dataset: Any = getattr(loader, 'dataset', None)
    is_ours = isinstance(dataset, PanopticDataset | InstanceDataset)
    return dataset.get_data_info(0) if is_ours and len(dataset) else {}


def _metainfos(runner: Runner) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each loader that is built, with the ``metainfo`` of its data set."""
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
        f'the data set of {loader} has {len(classes)} classes ({_names(classes)}), but the head '
        f'has num_classes={num_classes}. Set num_classes={len(classes)} on the head, or set the '
        "classes in the data set's metainfo."
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
            f'the data set of {loader} and the head disagree about what is a thing: '
            f'{"; ".join(differing)}. Set thing_ids={sorted(of_data)} on the head.'
        )


def _names(names: Sequence[str]) -> str:
    shown = ', '.join(map(str, names[:_MAX_NAMED]))
    return f'{shown}, ...' if len(names) > _MAX_NAMED else shown
