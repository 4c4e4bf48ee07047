"""The published rows, and the digest that shows when one of them changes.

``python -m tests.configs.rows`` records the digests of today in ``tests/data/rows.json``.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from mmengine import Config

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / 'configs'
RECORD = REPOSITORY / 'tests/data/rows.json'
ROWS = sorted(path.stem for path in CONFIGS.glob('*.py'))


class RowName(NamedTuple):
    """``mask2former_<backbone>_<dataset>[-<task>][_mmseg]``; without a task it is semantic."""

    backbone: str
    dataset: str
    task: str
    is_mmseg: bool


def parse(row: str) -> RowName:
    _, backbone, data, *variant = row.split('_')
    dataset, _, task = data.partition('-')
    assert variant in ([], ['mmseg'])
    return RowName(backbone, dataset, task or 'semantic', bool(variant))


SEMANTIC_ROWS = [row for row in ROWS if parse(row).task == 'semantic']
DETECTOR_ROWS = [row for row in ROWS if parse(row).task != 'semantic']
# One ResNet and one Swin, both recipes, the datasets.
ONE_PER_FAMILY = [
    'mask2former_r50_ade20k',
    'mask2former_r101_cityscapes_mmseg',
    'mask2former_swin-t_cityscapes',
    'mask2former_swin-b-in22k_ade20k_mmseg',
    'mask2former_r50_mapillary',
]
# One per data set and task; each kind of backbone.
ONE_DETECTOR_PER_FAMILY = [
    'mask2former_swin-t_coco-panoptic',
    'mask2former_r101_coco-instance',
    'mask2former_r50_cityscapes-panoptic',
    'mask2former_swin-l_cityscapes-instance',
    'mask2former_swin-l_ade20k-panoptic',
    'mask2former_r50_ade20k-instance',
    'mask2former_r50_mapillary-panoptic',
]


@cache
def load(row: str) -> Config:
    """The resolved configuration, to be left as it is."""
    return Config.fromfile(CONFIGS / f'{row}.py')


@cache
def metafile_models() -> dict[str, dict]:
    index = yaml.safe_load((REPOSITORY / 'model-index.yml').read_text())
    models = [
        model
        for path in index['Import']
        for model in yaml.safe_load((REPOSITORY / path).read_text())['Models']
    ]
    return {model['Name']: model for model in models}


def digest(cfg: Config) -> str:
    """Hash all that the row says, except the loggers, which depend on what is installed."""
    content = {k: v for k, v in cfg.to_dict().items() if k not in ('vis_backends', 'visualizer')}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    RECORD.write_text(json.dumps({row: digest(load(row)) for row in ROWS}, indent=2) + '\n')


if __name__ == '__main__':
    main()
