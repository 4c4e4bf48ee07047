"""Make what the instance and panoptic configs read, from the data sets as they are downloaded.

    python tools/prepare_dataset.py ade20k-panoptic data/ade/ADEChallengeData2016 --workers 8

An interrupted run goes on where it stopped when the same command is given again, and finished files
are left alone. docs/datasets.md tells what to download and what becomes of it.
"""

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from command_line import UsageError

SPLITS = ('train', 'val')
# The folders that the configs name, by the module of `prepare` for the data set.
ROOTS = {
    'ade20k': 'data/ade/ADEChallengeData2016',
    'cityscapes': 'data/cityscapes',
    'coco': 'data/coco',
    'mapillary': 'data/mapillary',
}
# By data set and task: the function of that module, and what it makes.
COMMANDS = {
    'ade20k-panoptic': ('make_panoptic', 'ade20k_panoptic_{train,val}.json and PNG, 150 classes'),
    'ade20k-instance': ('make_instance', 'ade20k_instance_{train,val}.json, 100 classes'),
    'cityscapes-panoptic': (
        'make_panoptic',
        'gtFine/cityscapes_panoptic_{train,val}.json and PNG, 19 classes',
    ),
    'cityscapes-instance': (
        'make_instance',
        'gtFine/cityscapes_instance_{train,val}.json, 8 classes',
    ),
    'coco-panoptic-semantic': (
        'make_semantic',
        'panoptic_semseg_{train,val}2017/*.png, label maps of 133 classes for mIoU',
    ),
    'mapillary': ('make_panoptic', 'annotations/panoptic_{training,validation}.json, 65 classes'),
}


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='From a downloaded data set to what the configs read; see docs/datasets.md.'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='DATASET-TASK')
    for name, (_, made) in COMMANDS.items():
        one = commands.add_parser(name, help=made, description=f'Makes {made}.')
        root = Path(ROOTS[name.partition('-')[0]])
        about_root = 'folder of the data set; default %(default)s'
        one.add_argument('root', nargs='?', type=Path, default=root, help=about_root)
        one.add_argument('--out', type=Path, help='where to write; default: into that folder')
        one.add_argument(
            '--workers', type=int, default=_cores(), help='processes; default %(default)s'
        )
        one.add_argument(
            '--splits', nargs='+', choices=SPLITS, default=list(SPLITS), help='default: both'
        )
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f'--workers must be at least 1, got {args.workers}')
    return args


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def prepare(args: argparse.Namespace) -> None:
    """Make the splits and print a line for each, and one for all."""
    from prepare.progress import clock, say

    module = importlib.import_module(f'prepare.{args.command.partition("-")[0]}')
    make = getattr(module, COMMANDS[args.command][0])
    started = time.monotonic()
    splits = [split for split in SPLITS if split in args.splits]
    outcomes = make(args.root, args.out or args.root, splits, args.workers)
    images = segments = 0
    for split, outcome in zip(splits, outcomes, strict=True):
        images += outcome.images
        segments += outcome.segments
        say(
            f'{split}: {outcome.images} images, {outcome.segments} segments, '
            f'{outcome.kept} images were done before: {outcome.path}'
        )
    seconds = clock(time.monotonic() - started)
    say(f'{args.command} done: {images} images, {segments} segments in {seconds}')


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prepare(args)
    except UsageError as error:
        print(f'prepare_dataset: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted: the same command goes on where this one stopped', file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print('a process was killed, perhaps for memory: try fewer --workers', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'stopped: {error}; the same command goes on from here', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
