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

import demo_report
from demo_report import OURS, TASKS, Task, why_no_peer, why_not
from demo_runs import ROOT, DemoError, Training, say, test, train, train_for


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


def demonstrate_seeds(
    name: str, work_dir: Path, skip_peer: bool, iterations: int | None, seeds: Sequence[int]
) -> None:
    single = []
    for seed in seeds:
        say(f'seed {seed}')
        folder = work_dir / f'seed-{seed}'
        demonstrate(name, folder, skip_peer, iterations, seed)
        single.append(json.loads((folder / 'metrics.json').read_text()))
    models = [OURS, TASKS[name].library]
    results = {'task': name, 'seeds': list(seeds), **demo_report.over_seeds(single, models)}
    (work_dir / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n')
    say(f'done: {name} with the seeds {", ".join(map(str, seeds))}; mean and standard deviation')
    print(demo_report.summary(TASKS[name], results))
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
    images = work_dir / 'images'
    options = ('--out', str(work_dir / task.results), '--show-dir', str(images))
    results: dict[str, Any] = {
        'task': name,
        OURS: measure(task, task.config, training, *options),
    }
    files = 'metrics.json'
    if task.label_maps:
        table = work_dir / 'per_class.csv'
        constant = demo_report.write_per_class(table, dataset, work_dir / task.label_maps)
        results['best_constant_mIoU'] = round(constant, 4)
        files = '{metrics.json,per_class.csv}'
    if 'PQ' in task.measures:
        results['object_mask_thr'] = config.model.test_cfg.object_mask_thr
    shown = ', '.join(f'{key} {results[OURS][key]:.3f}' for key in task.headline)
    say(f'{shown}; images: {images}')
    left_out = why_no_peer(name, skip_peer)
    if left_out:
        results[task.library] = {'left_out': left_out}
    else:
        say(f"{task.library}'s own head: how many iterations it manages in the same time")
        folder = work_dir / task.library
        peer = train_for(task.peer_config, folder, training.seconds, seed)
        show = ('--show-dir', str(folder / 'images'))
        results[task.library] = measure(task, task.peer_config, peer, *show)
    (work_dir / 'metrics.json').write_text(json.dumps(results, indent=2) + '\n')
    say(f'done: {name}, measured on the photos for validation')
    print(demo_report.summary(task, results))
    print(f'Photo, ground truth and predictions side by side: {images}')
    print(f'All numbers: {work_dir}/{files}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='The demo: train, test, compare.')
    parser.add_argument('--task', choices=sorted(TASKS), default='panoptic')
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
    work_dir = (args.work_dir or ROOT / 'work_dirs/demo' / args.task).resolve()
    options = (args.task, work_dir, args.skip_peer, args.iterations)
    try:
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
