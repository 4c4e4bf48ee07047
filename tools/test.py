"""Test a model: python tools/test.py CONFIG CHECKPOINT."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

ANNOTATION_STEP = re.compile(r'Load\w*Annotations|LoadSegments')
# Label maps, of mmseg's data sets and of panoptic ones. A panoptic JSON with annotations is of no
# use without its folder of PNG files, `seg`, so that stays: only a metric would read them.
TRUTH_FOLDERS = ('seg_map_path', 'label_map')


def create_test_parser() -> argparse.ArgumentParser:
    parser = create_parser('Test a model.')
    parser.add_argument(
        'checkpoint',
        help='checkpoint file or address, of mmseg_m2f or of the official code, mmdet, mmseg or '
        'Hugging Face',
    )
    add_min_matched(parser)
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='save the predictions. Of a semantic model: label maps as PNG, named like the '
        'images; of a detector: the submission formats of COCO, COCO panoptic and Cityscapes',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='save images: photo, ground truth if there is any, predictions, legend',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation of a semantic model: tta_model, tta_pipeline',
    )
    parser.add_argument(
        '--format-only',
        action='store_true',
        help='predict without ground truth and compute no metric; goes without saying where the '
        'dataset of the config has no label maps, or its JSON no annotations',
    )
    return parser


def is_detector(config: 'Config') -> bool:
    """Tell whether the model is a detector (instances, panoptic segments) or a segmentor."""
    from mmengine.registry import MODELS

    from mmseg_m2f.adapters.models.lazy import build_detector

    model = config.model.get('type')
    if isinstance(model, str):
        with MODELS.switch_scope_and_registry(config.get('default_scope')) as registry:
            model = registry.get(model)
    # mmdet's base class by name: mmdet itself may be missing.
    return model is build_detector or any(
        base.__name__ == 'BaseDetector' and base.__module__.startswith('mmdet.')
        for base in getattr(model, '__mro__', ())
    )


def enable_tta(config: 'Config') -> None:
    if is_detector(config):
        raise UsageError(
            '--tta averages the score maps of a semantic model; for instances and panoptic '
            'segments it is not supported'
        )
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in config]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)} in the config')
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = dict(config.tta_model, module=config.model)


def drop_ground_truth(config: 'Config') -> None:
    """Neither load ground truth nor compute a metric."""
    dataset = config.test_dataloader.dataset
    dataset.pipeline = _without_annotations(dataset.pipeline)
    for folder in TRUTH_FOLDERS:
        dataset.get('data_prefix', {}).pop(folder, None)
    config.test_evaluator = []


def _without_annotations(pipeline: list[Any]) -> list[Any]:
    kept = [step for step in pipeline if not ANNOTATION_STEP.search(str(step.get('type')))]
    for step in kept:
        if step.get('type') == 'TestTimeAug':
            step.transforms = [
                left for branch in step.transforms if (left := _without_annotations(branch))
            ]
    return kept


def add_hooks(config: 'Config', out: str | None, show_dir: str | None) -> None:
    hooks = [*(config.get('custom_hooks') or [])]
    if out:
        saver = 'SaveResultsHook' if is_detector(config) else 'SaveLabelMapsHook'
        hooks.append({'type': f'mmseg_m2f.{saver}', 'out_dir': out})
    if show_dir:
        hooks.append({'type': 'mmseg_m2f.DrawPredictionsHook', 'out_dir': show_dir})
    config.custom_hooks = hooks


def has_ground_truth(config: 'Config') -> bool:
    """Tell whether the test data set has ground truth. Wrappers of data sets are not opened."""
    dataset = config.test_dataloader.dataset
    if not is_detector(config):
        return 'data_prefix' not in dataset or bool(dataset.data_prefix.get('seg_map_path'))
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    # A test set comes as a JSON of images and categories alone, or with an empty list.
    return path.suffix != '.json' or not path.is_file() or bool(_read_json(path).get('annotations'))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def apply_options(config: 'Config', args: argparse.Namespace) -> None:
    check_checkpoint(args.checkpoint, 'checkpoint')
    config.load_from = args.checkpoint
    config.resume = False
    # Before --tta wraps the model.
    add_hooks(config, args.out, args.show_dir)
    if args.tta:
        enable_tta(config)
    if args.format_only or not has_ground_truth(config):
        if not (args.out or args.show_dir):
            raise UsageError('without ground truth there is no metric: give --out or --show-dir')
        print('no ground truth: the metrics are left out')
        drop_ground_truth(config)


def main() -> None:
    parser = create_test_parser()
    args = parser.parse_args()
    try:
        config = load_config(args)
        apply_options(config, args)
    except UsageError as error:
        parser.error(str(error))
    # Other classes than the checkpoint's would make the predictions nonsense.
    with stop_at_bad_checkpoint(args.min_matched, other_classes=False):
        build_runner(config).test()


if __name__ == '__main__':
    main()
