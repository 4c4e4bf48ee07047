"""Test a model: python tools/test.py CONFIG CHECKPOINT."""

import argparse
from typing import TYPE_CHECKING, Any

from command_line import UsageError, build_runner, check_file, create_parser, load_config

if TYPE_CHECKING:
    from mmengine.config import Config


def create_test_parser() -> argparse.ArgumentParser:
    parser = create_parser('Test a model.')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument(
        '--out', metavar='DIR', help='save the predicted label maps as PNG, named like the pictures'
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='save pictures: photo, ground truth if there is any, prediction, legend',
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: tta_model, tta_pipeline'
    )
    parser.add_argument(
        '--format-only',
        action='store_true',
        help='predict without ground truth and compute no metric; goes without saying where the '
        'dataset of the config has no label maps',
    )
    return parser


def enable_tta(config: 'Config') -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in config]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)} in the config')
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = dict(config.tta_model, module=config.model)


def drop_ground_truth(config: 'Config') -> None:
    """Neither load label maps nor compute a metric."""
    dataset = config.test_dataloader.dataset
    dataset.pipeline = _without_annotations(dataset.pipeline)
    dataset.get('data_prefix', {}).pop('seg_map_path', None)
    config.test_evaluator = []


def _without_annotations(pipeline: list[Any]) -> list[Any]:
    kept = [step for step in pipeline if 'LoadAnnotations' not in str(step.get('type'))]
    for step in kept:
        if step.get('type') == 'TestTimeAug':
            step.transforms = [
                left for branch in step.transforms if (left := _without_annotations(branch))
            ]
    return kept


def add_hooks(config: 'Config', out: str | None, show_dir: str | None) -> None:
    hooks = [*(config.get('custom_hooks') or [])]
    if out:
        hooks.append({'type': 'mmseg_m2f.SaveLabelMapsHook', 'out_dir': out})
    if show_dir:
        hooks.append({'type': 'mmseg_m2f.DrawPredictionsHook', 'out_dir': show_dir})
    config.custom_hooks = hooks


def has_ground_truth(config: 'Config') -> bool:
    """Whether the test dataset says where its label maps are (a wrapper's is not looked into)."""
    dataset = config.test_dataloader.dataset
    return 'data_prefix' not in dataset or bool(dataset.data_prefix.get('seg_map_path'))


def apply_options(config: 'Config', args: argparse.Namespace) -> None:
    check_file(args.checkpoint, 'checkpoint')
    config.load_from = args.checkpoint
    config.resume = False
    if args.tta:
        enable_tta(config)
    if args.format_only or not has_ground_truth(config):
        if not (args.out or args.show_dir):
            raise UsageError('without ground truth there is no metric: give --out or --show-dir')
        print('no ground truth: the metrics are left out')
        drop_ground_truth(config)
    add_hooks(config, args.out, args.show_dir)


def main() -> None:
    parser = create_test_parser()
    args = parser.parse_args()
    try:
        config = load_config(args)
        apply_options(config, args)
    except UsageError as error:
        parser.error(str(error))
    build_runner(config).test()


if __name__ == '__main__':
    main()
