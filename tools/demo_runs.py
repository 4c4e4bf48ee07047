"""Run the other tools for the demo: their commands, progress and results."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROGRESS_SECONDS = 10
# It has to end after the warm-up of the configs.
SHORTEST_SCHEDULE = 100
# The configs log every ten iterations, and only whole tens are timed.
LOG_INTERVAL = 10
LOG_TAIL_LINES = 20
ITERATION = re.compile(r'Iter\(train\) +\[ *(\d+)/(\d+)\].* eta: ([\d:]+).* loss: ([\d.]+)')
# Threads that wait for each other spin for long by default. Where another program takes one of two
# cores, an iteration was seen to take 20 times as long for it; with this limit not 3 times, and
# without such a program no longer than before.
CALM_THREADS = {'GOMP_SPINCOUNT': '3000'}
STARTED = time.monotonic()


class DemoError(Exception):
    """The demo cannot go on: a library is missing, or a command failed."""


class Training(NamedTuple):
    """A training; ``seconds`` is the time of its iterations, without validation and saving."""

    work_dir: Path
    iterations: int
    seconds: float


def say(message: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - STARTED), 60)
    print(f'[demo {minutes}:{seconds:02}] {message}', flush=True)


def run(command: Sequence[str], log: Path) -> None:
    """Run a tool with its output in ``log``, and show some of the training iterations."""
    say('$ python ' + ' '.join(command))
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open('w') as file,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**CALM_THREADS, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        assert process.stdout is not None
        try:
            follow(process.stdout, file)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-LOG_TAIL_LINES:])
        raise DemoError(f'{command[0]} failed; the end of {log}:\n{tail}')


def follow(output: Iterable[str], log: TextIO) -> None:
    """Copy the lines to the log and show the progress now and then."""
    shown = time.monotonic()
    for line in output:
        log.write(line)
        progress = ITERATION.search(line)
        if progress and time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            done, total, left, loss = progress.groups()
            say(f'  iteration {done}/{total}, loss {loss}, {left} left')


def train(
    config: str, work_dir: Path, iterations: int | None = None, seed: int | None = None
) -> Training:
    """Train by tools/train.py. ``iterations`` shortens or stretches the config's schedule."""
    command = ['tools/train.py', config, '--work-dir', str(work_dir)]
    settings = {} if seed is None else {'randomness.seed': seed}
    if iterations:
        settings |= {
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations,
            'param_scheduler.1.end': max(iterations, SHORTEST_SCHEDULE) + 1,
        }
    if settings:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]
    run(command, work_dir / 'train.log')
    logged = logged_training(work_dir)
    # Each line holds the mean time of the iterations since the one before.
    steps = np.diff([0, *(line['iter'] for line in logged)])
    seconds = float(np.dot(steps, [line['time'] for line in logged]))
    return Training(work_dir, int(logged[-1]['iter']), seconds)


def train_for(config: str, work_dir: Path, seconds: float, seed: int | None = None) -> Training:
    """Train for as many iterations as fit into ``seconds``; a short try tells the pace."""
    train(config, work_dir / 'probe', 2 * LOG_INTERVAL)
    # The first iterations warm up and do not count.
    pace = logged_training(work_dir / 'probe')[-1]['time']
    iterations = max(1, round(seconds / pace / LOG_INTERVAL)) * LOG_INTERVAL
    say(f'{pace:.2f} s per iteration, so {iterations} iterations')
    return train(config, work_dir / 'training', iterations, seed)


def logged_training(work_dir: Path) -> list[dict[str, Any]]:
    """Return the lines that the newest training logged every few iterations."""
    log = newest(work_dir, '*/vis_data/scalars.json').read_text()
    return [line for line in map(json.loads, log.splitlines()) if 'loss' in line]


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def test(config: str, training: Training, *options: str) -> dict[str, float]:
    """Test the trained model by tools/test.py and return its metrics."""
    checkpoint = (training.work_dir / 'last_checkpoint').read_text().strip()
    work_dir = training.work_dir / 'test'
    command = ['tools/test.py', config, checkpoint, '--work-dir', str(work_dir), *options]
    run(command, work_dir / 'test.log')
    return json.loads(newest(work_dir, '*/*.json').read_text())
