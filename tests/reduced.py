"""Rows made small: the same types everywhere, only the sizes cut, on a few small real photos."""

from pathlib import Path
from typing import Any
from unittest import mock

from mmengine import Config
from mmengine.runner import Runner
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
FACADE = REPOSITORY / 'data/tiny/facade'
FACTOR = 8  # every length in pixels is divided by this
SPLITS = {'train': 4, 'val': 2}
LENGTHS = ('scale', 'scales', 'crop_size', 'size', 'max_size')

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
    cfg.model.decode_head.update(HEAD)
    cfg.model.decode_head.in_channels = backbone_channels(cfg.model.backbone)
    cfg.model.data_preprocessor = _shrink_lengths(cfg.model.data_preprocessor)
    for split, name in (('train', 'train'), ('val', 'val'), ('val', 'test')):
        _reduce_dataloader(cfg[f'{name}_dataloader'], data_root, split)
    cfg.tta_pipeline = _shrink_lengths(cfg.tta_pipeline)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
    cfg.vis_backends = cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
    cfg.work_dir = str(data_root / 'work_dirs' / name)
    # MMEngine keeps one visualiser per name for the life of the process.
    cfg.experiment_name = cfg.visualizer.name = cfg.work_dir
    return cfg


def train_and_test(cfg: Config) -> dict[str, float]:
    """Trains, validates and tests as the tools do; the metrics of the test."""
    # Formatting the configuration for logs and checkpoints would take most of the time.
    with mock.patch.object(Config, 'pretty_text', property(lambda self: str(self.to_dict()))):
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.test()


def backbone_channels(backbone: dict[str, Any]) -> list[int]:
    """Channels of the four maps of a ResNet of bottlenecks or a Swin."""
    if backbone['type'] == 'ResNet':
        return [4 * backbone.get('base_channels', 64) * 2**i for i in range(4)]
    return [backbone['embed_dims'] * 2**i for i in range(4)]


def _reduce_backbone(backbone: Any) -> None:
    backbone.init_cfg = None
    if backbone.type == 'ResNet':
        backbone.update(stem_channels=8, base_channels=8)
    else:
        backbone.update(embed_dims=4 * backbone.num_heads[0], depths=[2, 2, 2, 2])


def _reduce_dataloader(loader: Any, data_root: Path, split: str) -> None:
    loader.update(num_workers=0, persistent_workers=False)
    dataset = loader.dataset
    # Packing a long list for the loader's processes costs a garbage collection.
    dataset.serialize_data = False
    dataset.pipeline = _shrink_lengths(dataset.pipeline)
    if dataset.type == 'BaseSegDataset':
        # The custom-data example comes with its data.
        dataset.update(data_root=str(FACADE), indices=SPLITS[split])
    else:
        dataset.data_root = str(data_root)
        _write_split(data_root, dataset, split)


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


def _write_split(data_root: Path, dataset: Any, split: str) -> None:
    """Facade photos of 96 x 72 under the folders and names the dataset looks for."""
    picture_dir = data_root / dataset.data_prefix.img_path
    label_dir = data_root / dataset.data_prefix.seg_map_path
    if picture_dir.exists():
        return
    picture_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    is_ade = dataset.type == 'ADE20KDataset'
    suffixes = ('.jpg', '.png') if is_ade else ('_leftImg8bit.png', '_gtFine_labelTrainIds.png')
    for path in sorted((FACADE / 'img' / split).iterdir())[: SPLITS[split]]:
        picture = Image.open(path).resize((96, 72))
        picture.save(picture_dir / f'{path.stem}{suffixes[0]}')
        labels = Image.open(FACADE / 'labelmap' / split / f'{path.stem}.png')
        labels = labels.resize((96, 72), Image.Resampling.NEAREST)
        # ADE20K counts classes from 1, with 0 for none.
        labels = labels.point([(value + 1) % 256 if is_ade else value for value in range(256)])
        labels.save(label_dir / f'{path.stem}{suffixes[1]}')
