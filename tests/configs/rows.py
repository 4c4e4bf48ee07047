"""The published rows, and the digest that shows when one of them changes.

``python -m tests.configs.rows`` records the digests of today in ``tests/data/rows.json``.
"""

import copy
import hashlib
import json
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / 'configs'
RECORD = REPOSITORY / 'tests/data/rows.json'
ROWS = sorted(path.stem for path in CONFIGS.glob('*.py'))
PANOPTIC, INSTANCE, SEMANTIC = 'PanopticMetric', 'InstanceMetric', 'SemanticMetric'
CITYSCAPES = 'CityscapesInstanceMetric'
# Data set and task -> classes, and metrics. The best checkpoint is the best by the first metric.
KINDS = {
    'ade20k-semantic': (150, ['IoUMetric']),
    'cityscapes-semantic': (19, ['IoUMetric']),
    'mapillary-semantic': (65, ['IoUMetric']),
    'coco-panoptic': (133, [PANOPTIC, INSTANCE, SEMANTIC]),
    'coco-instance': (80, [INSTANCE]),
    'cityscapes-panoptic': (19, [PANOPTIC, CITYSCAPES, INSTANCE, SEMANTIC]),
    'cityscapes-instance': (8, [CITYSCAPES, INSTANCE]),
    'ade20k-panoptic': (150, [PANOPTIC, INSTANCE, SEMANTIC]),
    'ade20k-instance': (100, [INSTANCE]),
    'mapillary-panoptic': (65, [PANOPTIC, SEMANTIC]),
}
MAIN_NUMBER = {
    'IoUMetric': 'mIoU',
    SEMANTIC: 'mIoU',
    PANOPTIC: 'coco_panoptic/PQ',
    INSTANCE: 'coco/segm_mAP',
    CITYSCAPES: 'cityscapes/AP',
}


class RowName(NamedTuple):
    """``mask2former_<backbone>_<dataset>[-<task>][_mmseg]``; without a task it is semantic."""

    backbone: str
    dataset: str
    task: str
    is_mmseg: bool

    @property
    def kind(self) -> str:
        return f'{self.dataset}-{self.task}'


def parse(row: str) -> RowName:
    _, backbone, data, *variant = row.split('_')
    dataset, _, task = data.partition('-')
    assert variant in ([], ['mmseg'])
    return RowName(backbone, dataset, task or 'semantic', bool(variant))


SEMANTIC_ROWS = [row for row in ROWS if parse(row).task == 'semantic']
DETECTOR_ROWS = [row for row in ROWS if parse(row).task != 'semantic']


@cache
def load(row: str) -> Config:
    """The resolved configuration, to be left as it is."""
    return Config.fromfile(CONFIGS / f'{row}.py')


def build(config: Config) -> torch.nn.Module:
    """Return the model of a configuration, with weights as allocated: that takes no time."""
    init_default_scope(config.default_scope)
    with no_initialization():
        return MODELS.build(copy.deepcopy(config.model)).eval()


@contextmanager
def no_initialization():
    with ExitStack() as stack:
        for name in dir(torch.nn.init):
            if name.endswith('_') and not name.startswith('_'):
                stack.enter_context(mock.patch.object(torch.nn.init, name, lambda x, *_, **__: x))
        yield


def digest(cfg: Config) -> str:
    """Hash all that the row says, except the loggers, which depend on what is installed."""
    content = {k: v for k, v in cfg.to_dict().items() if k not in ('vis_backends', 'visualizer')}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == '__main__':
    RECORD.write_text(json.dumps({row: digest(load(row)) for row in ROWS}, indent=2) + '\n')
