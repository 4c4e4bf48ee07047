"""Train a small Mask2Former on the photos in data/, test it, and compare it with mmseg's own head.

    python tools/demo.py [--work-dir work_dirs/demo] [--skip-peer] [--iterations 100]

It runs the commands it prints; each also works alone. mmseg's head gets the same photos, the same
settings and as many iterations as it manages in the time the first training took.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/demo/mask2former_r18_facade.py'
PEER_CONFIG = 'configs/demo/mmseg_r18_facade.py'
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
    """Which command failed, and the end of its output."""


class Training(NamedTuple):
    """``seconds`` is the time within the iterations, without start, validation and saving."""

    work_dir: Path
    iterations: int
    seconds: float


def say(message: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - STARTED), 60)
    print(f'[demo {minutes}:{seconds:02}] {message}', flush=True)


def run(command: Sequence[str], log: Path) -> None:
    """Run a tool with its output in ``log``; of the training iterations some are shown."""
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


def train(config: str, work_dir: Path, iterations: int | None = None) -> Training:
    """Train by tools/train.py; ``iterations`` shortens or stretches the config's schedule."""
    command = ['tools/train.py', config, '--work-dir', str(work_dir)]
    if iterations:
        settings = {
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations,
            'param_scheduler.1.end': max(iterations, SHORTEST_SCHEDULE) + 1,
        }
        command += ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]
    run(command, work_dir / 'train.log')
    logged = logged_training(work_dir)
    # Each line holds the mean time of the iterations since the one before.
    steps = np.diff([0, *(line['iter'] for line in logged)])
    seconds = float(np.dot(steps, [line['time'] for line in logged]))
    return Training(work_dir, int(logged[-1]['iter']), seconds)


def logged_training(work_dir: Path) -> list[dict[str, Any]]:
    """What the newest training logged every few iterations."""
    log = newest(work_dir, '*/vis_data/scalars.json').read_text()
    return [line for line in map(json.loads, log.splitlines()) if 'loss' in line]


def seconds_per_iteration(config: str, work_dir: Path) -> float:
    """Of a short training. The first iterations warm up and do not count."""
    train(config, work_dir, 2 * LOG_INTERVAL)
    return logged_training(work_dir)[-1]['time']


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def test(config: str, training: Training, *options: str) -> dict[str, float]:
    """The metrics of the trained model by tools/test.py."""
    checkpoint = (training.work_dir / 'last_checkpoint').read_text().strip()
    work_dir = training.work_dir / 'test'
    command = ['tools/test.py', config, checkpoint, '--work-dir', str(work_dir), *options]
    run(command, work_dir / 'test.log')
    return json.loads(newest(work_dir, '*/*.json').read_text())


def measure(config: str, training: Training, *options: str) -> dict[str, Any]:
    metrics = test(config, training, *options)
    return {
        'mIoU': round(metrics['mIoU'] / 100, 4),
        'aAcc': round(metrics['aAcc'] / 100, 4),
        'training_minutes': round(training.seconds / 60, 2),
        'iterations': training.iterations,
        'config': config,
    }


def why_no_peer(skip: bool) -> str | None:
    if skip:
        return '--skip-peer was given'
    if find_spec('mmdet') is None:
        return "mmdet is not installed, and mmseg's own Mask2Former head needs it"
    return None


def measure_peer(work_dir: Path, seconds: float) -> dict[str, Any]:
    """The same for mmseg's own head, with as many iterations as fit into ``seconds``."""
    say("mmseg's own head: how many iterations it manages in the same time")
    pace = seconds_per_iteration(PEER_CONFIG, work_dir / 'probe')
    iterations = max(1, round(seconds / pace / LOG_INTERVAL)) * LOG_INTERVAL
    say(f"mmseg's own head: {pace:.2f} s per iteration, so {iterations} iterations")
    training = train(PEER_CONFIG, work_dir / 'training', iterations)
    return measure(PEER_CONFIG, training, '--show-dir', str(work_dir / 'pictures'))


def confusion_matrix(label_dir: Path, prediction_dir: Path, num_classes: int) -> np.ndarray:
    """Pixels by (ground truth, prediction); ignored ones are left out."""
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
    """The mIoU of one class everywhere: its share of the pixels, over the classes that occur."""
    truth = confusion.sum(1)
    return float(truth.max() / truth.sum() / (truth > 0).sum())


def print_summary(results: Mapping[str, Any], work_dir: Path) -> None:
    say('done: validation mIoU')
    rows = [('Mask2Former of this package', results['mask2former'])]
    rows.append(('Mask2Former head of mmseg', results['mmseg']))
    for name, result in rows:
        if 'mIoU' in result:
            print(
                f'  {name:28} {result["mIoU"]:.3f}   {result["training_minutes"]:.1f} minutes, '
                f'{result["iterations"]} iterations'
            )
        else:
            print(f'  {name:28} left out: {result["left_out"]}')
    print(f'  {"best constant prediction":28} {results["best_constant_mIoU"]:.3f}')
    print(f'Photo, ground truth and prediction side by side: {work_dir / "pictures"}')
    print(f'All numbers: {work_dir / "metrics.json"} and {work_dir / "per_class.csv"}')


def demonstrate(work_dir: Path, skip_peer: bool, iterations: int | None) -> None:
    from mmengine.config import Config

    dataset = Config.fromfile(ROOT / CONFIG).test_dataloader.dataset
    classes = dataset.metainfo.classes
    say(f'training on the photos of {dataset.data_root}, {len(classes)} classes, from scratch')
    training = train(CONFIG, work_dir / 'training', iterations)
    say('testing')
    label_maps = work_dir / 'label_maps'
    options = ('--out', str(label_maps), '--show-dir', str(work_dir / 'pictures'))
    results: dict[str, Any] = {'mask2former': measure(CONFIG, training, *options)}
    label_dir = ROOT / dataset.data_root / dataset.data_prefix.seg_map_path
    confusion = confusion_matrix(label_dir, label_maps, len(classes))
    write_per_class(work_dir / 'per_class.csv', classes, confusion)
    results['best_constant_mIoU'] = round(best_constant(confusion), 4)
    say(f'mIoU {results["mask2former"]["mIoU"]:.3f}; pictures: {work_dir / "pictures"}')
    reason = why_no_peer(skip_peer)
    results['mmseg'] = (
        {'left_out': reason} if reason else measure_peer(work_dir / 'mmseg', training.seconds)
    )
    (work_dir / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n')
    print_summary(results, work_dir)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='The demo: train, test, compare.')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo')
    parser.add_argument(
        '--skip-peer', action='store_true', help="leave out the training of mmseg's own head"
    )
    parser.add_argument(
        '--iterations',
        type=int,
        help='train for so many iterations, a multiple of ten, instead of the number in the config',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        demonstrate(args.work_dir.resolve(), args.skip_peer, args.iterations)
    except DemoError as error:
        print(f'demo stopped: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('demo interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
