"""What would stop an evaluation is found before the training, not after hours of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.fileio import exists
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.data.instance import InstanceDataset
from mmseg_m2f.adapters.data.panoptic import PanopticDataset


def check_evaluation(runner: Runner) -> None:
    """Whether model and files have what the metrics of the loops about to run will ask for.

    Of metrics, models and data sets of other packages nothing is asked. Files are looked for those
    of the first image.

    Raises:
        ValueError: ``test_cfg`` switches a result off that a metric needs.
        FileNotFoundError: a file of the ground truth is missing, with what makes or avoids it.
    """
    for name in ('val', 'test'):
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
            f'{type(metric).__name__} of {evaluator} needs what model.test_cfg.{needed}=False '
            f'switches off: set it to True, or take the metric out of {evaluator}'
        )


def _check_files(evaluator: str, metric: Any, record: Mapping[str, Any]) -> None:
    for path, hint in _truth_files(metric, record):
        if not exists(path):
            raise FileNotFoundError(
                f'{type(metric).__name__} of {evaluator} reads {path}, which is not there. {hint}'
            )


def _truth_files(metric: Any, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    tell = getattr(metric, 'truth_files', None)
    return iter(tell(record) if tell is not None else ())


def _first_record(loader: Any) -> Mapping[str, Any]:
    dataset: Any = getattr(loader, 'dataset', None)
    is_ours = isinstance(dataset, PanopticDataset | InstanceDataset)
    return dataset.get_data_info(0) if is_ours and len(dataset) else {}
