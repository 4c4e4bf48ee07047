"""The command line that the tools share: the options of OpenMMLab's tools, and the config.

Nothing heavy is imported before the command line has been read, so that ``-h`` and a typing error
are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


class UsageError(Exception):
    """A mistake that the user can put right, in one sentence."""


class ConfigOptions(argparse.Action):
    """Read ``KEY=VALUE ...`` by MMEngine's rules."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from mmengine.config import DictAction

        for value in values or ():
            if '=' not in value:
                parser.error(f'--cfg-options takes KEY=VALUE pairs, got {value!r}')
        action = DictAction(self.option_strings, self.dest, nargs='+')
        action(parser, namespace, values, option_string)


def create_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the config and the options that all tools have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs and results; default work_dirs/<name of the config>'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config, as in optim_wrapper.optimizer.lr=1e-5 or '
        'crop_size="(256,256)"; quote what contains brackets and leave out white space',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    # torch.distributed.launch passes the first spelling, older ones the second.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0, help='set by the launcher'
    )
    return parser


def add_min_matched(parser: argparse.ArgumentParser) -> None:
    """Add ``--min-matched``, for tools that load weights."""
    parser.add_argument(
        '--min-matched',
        type=_share,
        default=0.95,
        metavar='SHARE',
        help='smallest share of tensors that must match in each module of the model (default: '
        '%(default)s); 0 loads whatever fits',
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be between 0 and 1, got {text}')
    return value


def check_checkpoint(path: str, what: str) -> None:
    """Raise UsageError if a checkpoint is missing. It may be a folder of Hugging Face."""
    if not Path(path).is_dir():
        check_file(path, what)


def check_file(path: str, what: str) -> None:
    """Raise UsageError if a local file is missing. Addresses are left to MMEngine."""
    if '://' not in path and not Path(path).is_file():
        raise UsageError(f'{what} not found: {path}')


def load_config(args: argparse.Namespace) -> 'Config':
    """Read the config and apply the command line to it."""
    check_file(args.config, 'config')
    from mmengine.config import Config

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = Config.fromfile(args.config)
    config.launcher = args.launcher
    config.merge_from_dict(args.cfg_options)
    if args.work_dir:
        config.work_dir = args.work_dir
    elif not config.get('work_dir'):
        config.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return config


def build_runner(config: 'Config') -> 'Runner':
    """Build MMEngine's runner, or the one that the config names as ``runner_type``."""
    if config.launcher == 'pytorch':
        _start_cpu_processes(config)
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


@contextmanager
def stop_at_bad_checkpoint(min_matched: float, other_classes: bool = True) -> Iterator[None]:
    """End the program with one message if a checkpoint breaks the rules of loading."""
    from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
    from mmseg_m2f.adapters.checkpoints.rules import load_rules

    try:
        with load_rules(min_matched, other_classes):
            yield
    except CheckpointError as error:
        sys.exit(f'{type(error).__name__}: {error}')


def _start_cpu_processes(config: 'Config') -> None:
    # MMEngine picks a GPU for every process before it starts them and wraps the model for it.
    import torch

    if torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    if 'SyncBN' in str(config.model):
        print('SyncBN needs GPUs: on the CPU every process normalizes its own images (BN)')
        _replace_sync_bn(config.model)
    config.setdefault(
        'model_wrapper_cfg',
        {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': config.get('find_unused_parameters', False),
        },
    )


def _replace_sync_bn(config: dict[str, Any]) -> None:
    """Replace ``type='SyncBN'`` by ``'BN'`` wherever it stands in ``config``."""
    for key, value in config.items():
        if isinstance(value, dict):
            _replace_sync_bn(value)
        elif (key, value) == ('type', 'SyncBN'):
            config[key] = 'BN'
