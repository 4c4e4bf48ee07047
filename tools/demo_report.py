"""The numbers of the demo: by class, over several seeds, and as a table in the terminal."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_tasks import Task
from PIL import Image

OURS = 'mask2former'


def confusion_matrix(label_dir: Path, prediction_dir: Path, num_classes: int) -> np.ndarray:
    """Count pixels by (ground truth, prediction), without ignored ones."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for path in sorted(prediction_dir.glob('*.png')):
        truth = np.asarray(Image.open(label_dir / path.name)).astype(np.int64)
        valid = truth < num_classes
        pairs = truth[valid] * num_classes + np.asarray(Image.open(path))[valid]
        matrix += np.bincount(pairs, minlength=num_classes**2).reshape(matrix.shape)
    return matrix


def write_per_class(path: Path, classes: Sequence[str], confusion: np.ndarray) -> None:
    truth, predicted, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    with np.errstate(invalid='ignore'):
        columns = (both / (truth + predicted - both), both / truth, truth / truth.sum())
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['class', 'IoU', 'accuracy', 'share of the ground truth'])
        for name, *numbers in zip(classes, *columns, strict=True):
            writer.writerow([name, *(f'{number:.4f}' for number in numbers)])


def best_constant(confusion: np.ndarray) -> float:
    """Return the mIoU of predicting one class everywhere, over the classes that occur."""
    truth = confusion.sum(1)
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
