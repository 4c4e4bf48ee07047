"""Make a file to hand out from a checkpoint: python tools/publish_weights.py SRC DST.

DST holds the weights and the plain part of the meta data (class names, colors, the head's
configuration), no optimizer and no history. It loads with ``torch.load(DST, weights_only=True)``.
"""

import argparse

from command_line import UsageError, check_file

KEPT_META = ('dataset_meta', 'head_config', 'iter', 'epoch', 'seed', 'mmengine_version')


def publish(source: str, target: str) -> int:
    """Write ``target`` and return the number of tensors in it.

    Raises:
        CheckpointError: ``source`` is no checkpoint or asks for more than plain values.
    """
    from mmseg_m2f.adapters.checkpoints.formats import weights_of
    from mmseg_m2f.adapters.checkpoints.loader import read_checkpoint
    from mmseg_m2f.adapters.checkpoints.write import save_weights

    checkpoint = read_checkpoint(source, 'cpu')
    weights = weights_of(checkpoint, source)
    meta = checkpoint.get('meta', {})
    save_weights(weights, target, {key: meta[key] for key in KEPT_META if key in meta})
    return len(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description='Make a file to hand out from a checkpoint.')
    parser.add_argument('source', help='checkpoint of a training')
    parser.add_argument('target', help='file to write')
    args = parser.parse_args()
    try:
        check_file(args.source, 'checkpoint')
    except UsageError as error:
        parser.error(str(error))
    print(f'{args.target}: {publish(args.source, args.target)} tensors')


if __name__ == '__main__':
    main()
