"""Rows made small: the same types everywhere, only the sizes cut, on a few small real photos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mmengine import Config
from mmengine.runner import Runner

from tests.layouts import FACADE, LAYOUTS, SPLITS, write_dataset

REPOSITORY = Path(__file__).parents[1]
FACTOR = 8  # every length in pixels is divided by this
LOADERS = {'train_dataloader': 'train', 'val_dataloader': 'val', 'test_dataloader': 'val'}
LENGTHS = ('scale', 'scales', 'crop_size', 'size', 'max_size', 'target_size')

HEAD = {
    'num_queries': 8,
    'pixel_decoder': {'channels': 32, 'num_layers': 2, 'ffn_dim': 48},
    'decoder': {'num_layers': 2, 'ffn_dim': 48},
    'losses': {'points': {'num_points': 64}},
}


def reduce_config(cfg: Config, data_root: Path) -> Config:
    """The row ``cfg`` for two iterations and a test within seconds on a CPU.

    ``data_root`` gets a small dataset in the layout of the row's, unless it is there. Results go
    to ``data_root/work_dirs/<name of the row>``.
    """
    name = Path(cfg.filename).stem
    cfg = Config(cfg.to_dict())
    _reduce_backbone(cfg.model.backbone)
    head_of(cfg).update(HEAD)
    cfg.model.data_preprocessor = _shrink_lengths(cfg.model.data_preprocessor)
    if 'tta_pipeline' in cfg:
        cfg.tta_pipeline = _shrink_lengths(cfg.tta_pipeline)
    cfg.default_hooks.logger.interval = 1
    return shorten(cfg, data_root, f'work_dirs/{name}')


def shorten(cfg: Config, data_root: Path, work_dir: str) -> Config:
    """Let a config train two iterations and test on a small data set below ``data_root``."""
    _move_data(cfg, data_root)
    for loader in LOADERS:
        _reduce_dataloader(cfg[loader])
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.vis_backends = cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
    cfg.work_dir = str(data_root / work_dir)
    # MMEngine keeps one visualizer per name for the life of the process.
    cfg.experiment_name = cfg.visualizer.name = cfg.work_dir
    return cfg


def train_and_test(cfg: Config) -> dict[str, float]:
    """Trains, validates and tests as the tools do; the metrics of the test."""
    # Formatting the configuration for logs and checkpoints would take most of the time.
    with mock.patch.object(Config, 'pretty_text', property(lambda self: str(self.to_dict()))):
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.test()


def head_of(cfg: Config) -> Any:
    """The head's settings: of a segmentor of mmseg or a detector of mmdet."""
    return cfg.model['panoptic_head' if 'panoptic_head' in cfg.model else 'decode_head']


def evaluators_of(cfg: Config) -> Iterator[Any]:
    """The settings of every metric of validation and test."""
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        yield from evaluator if isinstance(evaluator, list | tuple) else [evaluator]


def _reduce_backbone(backbone: Any) -> None:
    backbone.init_cfg = None
    if backbone.type == 'ResNet':
        backbone.update(stem_channels=8, base_channels=8)
    else:
        backbone.update(embed_dims=4 * backbone.num_heads[0], depths=[2, 2, 2, 2])


def _move_data(cfg: Config, data_root: Path) -> None:
    """Lets data sets and metrics read from ``data_root``, or from the examples' own data."""
    old_root = Path(cfg.train_dataloader.dataset.data_root)
    if old_root == FACADE.relative_to(REPOSITORY):
        data_root = FACADE
        for loader, split in LOADERS.items():
            cfg[loader].dataset.indices = SPLITS[split]
    else:
        (name,) = (name for name in LAYOUTS if name.startswith(old_root.parts[1]))
        write_dataset(name, data_root)
    for loader in LOADERS:
        cfg[loader].dataset.data_root = str(data_root)
    for evaluator in evaluators_of(cfg):
        for key in {'ann_file', 'gt_dir'} & set(evaluator):
            path = Path(evaluator[key])
            if not path.is_absolute():
                evaluator[key] = str(data_root / path.relative_to(old_root))


def _reduce_dataloader(loader: Any) -> None:
    loader.update(num_workers=0, persistent_workers=False)
    # Packing a long list for the loader's processes costs a garbage collection.
    loader.dataset.serialize_data = False
    loader.dataset.pipeline = _shrink_lengths(loader.dataset.pipeline)


def _shrink_lengths(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _shrink(value) if key in LENGTHS else _shrink_lengths(value)
            for key, value in node.items()
        }
    return [_shrink_lengths(value) for value in node] if isinstance(node, list) else node


def _shrink(length: Any) -> Any:
    if isinstance(length, list | tuple):
        return type(length)(_shrink(value) for value in length)
    return length // FACTOR
