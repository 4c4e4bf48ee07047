"""The demo's numbers over several seeds: how much of a difference is chance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from demo_tasks import Task, rows


def over_seeds(results: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Per model each number's mean and standard deviation, from ``results`` of one seed each.

    A model that was left out stays so; a number is None unless every seed has it.
    """
    return {model: _of_model([result[model] for result in results]) for model in models}


def _of_model(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if 'left_out' in runs[0]:
        return runs[0]
    numbers = [name for name, value in runs[0].items() if not isinstance(value, str)]
    return {name: _mean_and_deviation([run[name] for run in runs]) for name in numbers}


def _mean_and_deviation(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return None
    return {
        'mean': round(statistics.mean(known), 4),
        'standard_deviation': round(statistics.stdev(known), 4),
    }


def table(task: Task, names: Mapping[str, str], results: Mapping[str, Any]) -> str:
    """A line for each model, a column for each measure, under the models' full ``names``."""
    return '\n'.join(rows(task, names, results, _shown, _spent, width=17))


def _shown(number: Mapping[str, float]) -> str:
    return f'{number["mean"]:.4f} +- {number["standard_deviation"]:.4f}'


def _spent(result: Mapping[str, Any]) -> str:
    minutes, iterations = (result[key]['mean'] for key in ('training_minutes', 'iterations'))
    return f'{minutes:.1f} minutes, {iterations:.0f} iterations'
