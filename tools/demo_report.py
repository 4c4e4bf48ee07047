"""The tasks of the demo, and their numbers: by class, over several seeds, and as a table."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo_runs import ROOT
from PIL import Image

OURS = 'mask2former'


class Task(NamedTuple):
    """A task of the demo.

    Attributes:
        library: the framework that the task runs in; it has the other head.
        measures: by name, the key in the log of tools/test.py and the highest value there.
        results: the folder of the predictions.
        label_maps: the folder of the predicted label maps.
    """

    config: str
    peer_config: str
    library: str
    measures: Mapping[str, tuple[str, float]]
    results: str = 'results'
    label_maps: str | None = None

    @property
    def headline(self) -> list[str]:
        """Return the measures that the summary shows."""
        return [name for name in ('mIoU', 'PQ', 'AP') if name in self.measures]


MIOU = {name: (name, 100.0) for name in ('mIoU', 'aAcc')}
AP = {
    'AP': ('coco/segm_mAP', 1.0),
    'AP50': ('coco/segm_mAP_50', 1.0),
    'AP75': ('coco/segm_mAP_75', 1.0),
}
PQ = {name: (f'coco_panoptic/{name}', 100.0) for name in ('PQ', 'SQ', 'RQ', 'PQ_th', 'PQ_st')}
TASKS = {
    'semantic': Task(
        config='configs/demo/mask2former_r18_facade.py',
        peer_config='configs/demo/mmseg_r18_facade.py',
        library='mmseg',
        measures=MIOU,
        results='label_maps',
        label_maps='label_maps',
    ),
    'instance': Task(
        config='configs/demo/mask2former_r18_facade-instance.py',
        peer_config='configs/demo/mmdet_r18_facade-instance.py',
        library='mmdet',
        measures=AP,
    ),
    'panoptic': Task(
        config='configs/demo/mask2former_r18_facade-panoptic.py',
        peer_config='configs/demo/mmdet_r18_facade-panoptic.py',
        library='mmdet',
        measures={**MIOU, **PQ, **AP},
        label_maps='results/semantic',
    ),
}
DISTRIBUTIONS = {
    'mmseg': 'onedl-mmsegmentation (upstream: mmsegmentation)',
    'mmdet': 'onedl-mmdetection (upstream: mmdet)',
}


def why_not(name: str) -> str | None:
    """Return a sentence about the library that the task lacks here, None if it lacks none."""
    library = TASKS[name].library
    if find_spec(library) is not None:
        return None
    others = [other for other, task in TASKS.items() if task.library != library]
    return (
        f'TASK={name} needs {library}, which is not installed: install {DISTRIBUTIONS[library]}, '
        f'or choose TASK={" or ".join(others)}'
    )


def why_no_peer(name: str, skip: bool) -> str | None:
    """Return why the other head is left out, None if it is not."""
    if skip:
        return '--skip-peer was given'
    if find_spec('mmdet') is None:
        return f"mmdet is not installed, and {TASKS[name].library}'s own head needs it"
    return None


def write_per_class(path: Path, dataset: Any, prediction_dir: Path) -> float:
    """Write a table of the classes from the label maps of a data set and those predicted.

    Return the mIoU of predicting one class everywhere, over the classes that occur.
    """
    root = ROOT / dataset.data_root
    classes = [
        entry['name'] for entry in json.loads((root / 'classes.json').read_text())['classes']
    ]
    prefix = dataset.data_prefix
    label_dir = root / (prefix.get('seg_map_path') or prefix.get('label_map'))
    # Pixels by (ground truth, prediction), without ignored ones.
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for predicted in sorted(prediction_dir.glob('*.png')):
        labels = np.asarray(Image.open(label_dir / predicted.name))
        valid = labels < len(classes)
        np.add.at(confusion, (labels[valid], np.asarray(Image.open(predicted))[valid]), 1)
    truth, found, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    with np.errstate(invalid='ignore'):
        columns = (both / (truth + found - both), both / truth, truth / truth.sum())
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['class', 'IoU', 'accuracy', 'share of the ground truth'])
        for name, *numbers in zip(classes, *columns, strict=True):
            writer.writerow([name, *(f'{number:.4f}' for number in numbers)])
    return float(truth.max() / truth.sum() / (truth > 0).sum())


def over_seeds(results: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Return the mean and standard deviation of each number of each model.

    A model that was left out stays so; a number is None unless every seed has it.
    """
    found = {}
    for model in models:
        runs = [result[model] for result in results]
        if 'left_out' in runs[0]:
            found[model] = runs[0]
        else:
            numbers = [name for name, value in runs[0].items() if not isinstance(value, str)]
            found[model] = {name: _deviation([run[name] for run in runs]) for name in numbers}
    return found


def _deviation(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return None
    return {
        'mean': round(statistics.mean(known), 4),
        'standard_deviation': round(statistics.stdev(known), 4),
    }


def summary(task: Task, results: Mapping[str, Any]) -> str:
    """Return a line for each model, of one training or of several seeds."""
    lines = [f'  {"":28}' + ''.join(f'{name:>17}' for name in task.headline)]
    for key, package in ((OURS, 'this package'), (task.library, task.library)):
        name, result = f'Mask2Former of {package}', results[key]
        if 'left_out' in result:
            lines.append(f'  {name:28}left out: {result["left_out"]}')
            continue
        columns = ''.join(f'{_shown(result[measure]):>17}' for measure in task.headline)
        minutes, iterations = (_mean(result[key]) for key in ('training_minutes', 'iterations'))
        lines.append(f'  {name:28}{columns}   {minutes:.1f} minutes, {iterations:.0f} iterations')
    if 'best_constant_mIoU' in results:
        lines.append(f'  {"best constant prediction":28}{results["best_constant_mIoU"]:17.3f}')
    if 'object_mask_thr' in results:
        threshold = results['object_mask_thr']
        lines.append(f'  PQ with object_mask_thr {threshold:g} (the paper: 0.8, for long training)')
    return '\n'.join(lines)


def _shown(number: float | Mapping[str, float] | None) -> str:
    if number is None:
        return 'cannot'
    if isinstance(number, Mapping):
        return f'{number["mean"]:.4f} +- {number["standard_deviation"]:.4f}'
    return f'{number:.3f}'


def _mean(number: float | Mapping[str, float]) -> float:
    return number['mean'] if isinstance(number, Mapping) else number
