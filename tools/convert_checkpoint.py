"""Convert a checkpoint: python tools/convert_checkpoint.py SRC DST [--config CONFIG] [--to LAYOUT].

SRC is a file of the official code (.pkl, .pth), of mmdet, mmseg, Hugging Face (.safetensors or the
folder), or of a backbone (torchvision, timm, Microsoft's Swin); DST is written whole or not at all.
"""

import argparse
import sys

from command_line import UsageError, add_min_matched, check_checkpoint, check_file

LAYOUTS = ('mmseg_m2f', 'detectron2', 'mmdet', 'mmseg', 'hf')
BACKBONE_LAYOUTS = ('torchvision', 'timm', 'swin')


def create_convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Convert a checkpoint.')
    parser.add_argument('source', help='checkpoint file, folder of Hugging Face, or address')
    parser.add_argument(
        'target',
        help='file to write: .pkl for detectron2, .safetensors for hf, .pth for the others',
    )
    parser.add_argument(
        '--config', help='config of the model the weights have to fit; the fit is printed'
    )
    parser.add_argument(
        '--from',
        dest='source_layout',
        choices=['auto', *LAYOUTS, *BACKBONE_LAYOUTS],
        default='auto',
        help='whose names the source has; found from the names by default',
    )
    parser.add_argument(
        '--to',
        dest='target_layout',
        choices=LAYOUTS,
        default='mmseg_m2f',
        help='whose names to use',
    )
    add_min_matched(parser)
    parser.add_argument(
        '--reorder',
        choices=['things-first', 'official'],
        help='put the rows of the classes from the official order into that of a panoptic data set '
        'of mmdet, or back; needs the --config with the thing_ids of the official order',
    )
    return parser


def convert(args: argparse.Namespace) -> str:
    """Convert as the arguments say, and return the closing line.

    Raises:
        CheckpointError, ValueError, ImportError: see `convert_checkpoint`.
    """
    from mmseg_m2f.adapters.checkpoints.convert_file import convert_checkpoint

    print(f'reading {args.source}')
    done = convert_checkpoint(
        args.source,
        args.target,
        config=args.config,
        source=args.source_layout,
        target=args.target_layout,
        min_matched=args.min_matched,
        reorder=args.reorder,
    )
    return f'{done.path}: {done.num_tensors} tensors, {done.layout} to {done.target}'


def main() -> None:
    parser = create_convert_parser()
    args = parser.parse_args()
    try:
        check_checkpoint(args.source, 'checkpoint')
        if args.config:
            check_file(args.config, 'config')
    except UsageError as error:
        parser.error(str(error))
    try:
        print(convert(args))
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    main()
