"""Train a model: python tools/train.py CONFIG."""

import argparse
from typing import TYPE_CHECKING

from command_line import (
    UsageError,
    add_min_matched,
    build_runner,
    check_checkpoint,
    create_parser,
    load_config,
    stop_at_bad_checkpoint,
)

if TYPE_CHECKING:
    from mmengine.config import Config

AMP_WRAPPER = 'mmseg_m2f.AmpOptimWrapper'
AMP_CAPABLE = ('OptimWrapper', 'AmpOptimWrapper', AMP_WRAPPER)


def create_train_parser() -> argparse.ArgumentParser:
    parser = create_parser('Train a model.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a value from the last one in the work folder',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help=f'mixed precision by {AMP_WRAPPER}: on a GPU; on the CPU training stays float32',
    )
    add_min_matched(parser)
    return parser


def set_resume(config: 'Config', resume: str | None) -> None:
    if resume is None:
        return
    if resume == 'auto':
        from mmengine.runner import find_latest_checkpoint

        resume = find_latest_checkpoint(config.work_dir)
        if resume is None:
            print(f'--resume: no checkpoint in {config.work_dir}, the training starts anew')
            return
    check_checkpoint(resume, 'checkpoint to resume from')
    # Not the pre-trained weights that load_from may name.
    config.resume, config.load_from = True, resume


def enable_amp(config: 'Config') -> None:
    """Switch mixed precision on; other settings of the optimizer wrapper are kept."""
    wrapper = config.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in AMP_CAPABLE:
        raise UsageError(f'--amp can replace optim_wrapper.type {AMP_CAPABLE}, but it is {kind!r}')
    wrapper.type = AMP_WRAPPER


def main() -> None:
    parser = create_train_parser()
    args = parser.parse_args()
    try:
        config = load_config(args)
        set_resume(config, args.resume)
        if args.amp:
            enable_amp(config)
    except UsageError as error:
        parser.error(str(error))
    with stop_at_bad_checkpoint(args.min_matched):
        build_runner(config).train()


if __name__ == '__main__':
    main()
