"""Train a small Mask2Former on the photos in data/, test it, and compare it with OpenMMLab's own.

    python tools/demo.py [--task panoptic] [--work-dir DIR] [--skip-peer] [--iterations 100]
                         [--seeds 0 1 2]

The panoptic model is trained once and then answers all three questions in one test. The other
head, mmdet's (mmseg's for TASK=semantic), gets the same photos, the same settings and as many
iterations as it manages in the time the first training took. The commands it runs are printed;
each also works alone. ``--seeds`` does all of it for each of them, and ends with means and
standard deviations: a single training says little of small differences.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_report import (
    OURS,
    best_constant,
    confusion_matrix,
    over_seeds,
    summary,
    write_per_class,
)
from demo_runs import ROOT, DemoError, Training, say, test, train, train_for
from demo_tasks import DEFAULT, TASKS, Task, why_no_peer, why_not


def measure(task: Task, config: str, training: Training, *options: str) -> dict[str, Any]:
    """Test a model. Return its measures as shares of one, None for one that it does not have."""
    metrics = test(config, training, *options)
    measured = {
        name: round(metrics[key] / full, 4) if key in metrics else None
        for name, (key, full) in task.measures.items()
    }
    return {
        **measured,
        'training_minutes': round(training.seconds / 60, 2),
        'iterations': training.iterations,
        'config': config,
    }


def add_label_maps(task: Task, dataset: Any, work_dir: Path, results: dict[str, Any]) -> None:
    """Write the table per class, and add what a mIoU compares with, from the label maps."""
    assert task.label_maps
    classes = json.loads((ROOT / dataset.data_root / 'classes.json').read_text())['classes']
    names = [entry['name'] for entry in classes]
    prefix = dataset.data_prefix
    label_dir = ROOT / dataset.data_root / (prefix.get('seg_map_path') or prefix.get('label_map'))
    confusion = confusion_matrix(label_dir, work_dir / task.label_maps, len(names))
    write_per_class(work_dir / 'per_class.csv', names, confusion)
    results['best_constant_mIoU'] = round(best_constant(confusion), 4)


def demonstrate_seeds(
    name: str, work_dir: Path, skip_peer: bool, iterations: int | None, seeds: Sequence[int]
) -> None:
    folders = [work_dir / f'seed-{seed}' for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        say(f'seed {seed}')
        demonstrate(name, folder, skip_peer, iterations, seed)
    task = TASKS[name]
    single = [json.loads((folder / 'metrics.json').read_text()) for folder in folders]
    results = {'task': name, 'seeds': list(seeds), **over_seeds(single, [OURS, task.library])}
    (work_dir / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n')
    say(f'done: {name} with the seeds {", ".join(map(str, seeds))}; mean and standard deviation')
    print(summary(task, results))
    print(f'All numbers: {work_dir}/metrics.json, of each seed in {work_dir}/seed-<number>')


def demonstrate(
    name: str,
    work_dir: Path,
    skip_peer: bool,
    iterations: int | None = None,
    seed: int | None = None,
) -> None:
    reason = why_not(name)
    if reason:
        raise DemoError(reason)
    from mmengine.config import Config

    task = TASKS[name]
    config = Config.fromfile(ROOT / task.config)
    dataset = config.test_dataloader.dataset
    say(f'{name}: training on the photos of {dataset.data_root} from scratch')
    training = train(task.config, work_dir / 'training', iterations, seed)
    say('testing')
    options = ('--out', str(work_dir / task.results), '--show-dir', str(work_dir / 'images'))
    results: dict[str, Any] = {
        'task': name,
        OURS: measure(task, task.config, training, *options),
    }
    if task.label_maps:
        add_label_maps(task, dataset, work_dir, results)
    if 'PQ' in task.measures:
        results['object_mask_thr'] = config.model.test_cfg.object_mask_thr
    shown = ', '.join(f'{key} {results[OURS][key]:.3f}' for key in task.headline)
    say(f'{shown}; images: {work_dir / "images"}')
    left_out = why_no_peer(name, skip_peer)
    if left_out:
        results[task.library] = {'left_out': left_out}
    else:
        say(f"{task.library}'s own head: how many iterations it manages in the same time")
        folder = work_dir / task.library
        peer = train_for(task.peer_config, folder, training.seconds, seed)
        images = str(folder / 'images')
        results[task.library] = measure(task, task.peer_config, peer, '--show-dir', images)
    (work_dir / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n')
    say(f'done: {name}, measured on the photos for validation')
    print(summary(task, results))
    print(f'Photo, ground truth and predictions side by side: {work_dir / "images"}')
    print(
        f'All numbers: {work_dir}/'
        + ('{metrics.json,per_class.csv}' if task.label_maps else 'metrics.json')
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='The demo: train, test, compare.')
    parser.add_argument('--task', choices=sorted(TASKS), default=DEFAULT)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo/<task>')
    parser.add_argument(
        '--skip-peer',
        action='store_true',
        help="leave out the training of mmdet's or mmseg's own head",
    )
    parser.add_argument(
        '--iterations',
        type=int,
        help='train for so many iterations, a multiple of ten, instead of the number in the config',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        help='all of it once for each of these seeds, two at least; then mean and deviation',
    )
    args = parser.parse_args()
    if args.seeds and len(set(args.seeds)) < max(2, len(args.seeds)):
        parser.error(f'--seeds takes two or more different numbers, got {args.seeds}')
    return args


def main() -> int:
    args = parse_args()
    work_dir = args.work_dir or ROOT / 'work_dirs/demo' / args.task
    try:
        options = args.task, work_dir.resolve(), args.skip_peer, args.iterations
        if args.seeds:
            demonstrate_seeds(*options, args.seeds)
        else:
            demonstrate(*options)
    except DemoError as error:
        print(f'demo stopped: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('demo interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
