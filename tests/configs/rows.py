"""The published rows, and the digest that shows when one of them changes.

``python -m tests.configs.rows`` records the digests of today in ``tests/data/rows.json``.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from mmengine import Config

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / 'configs'
RECORD = REPOSITORY / 'tests/data/rows.json'
ROWS = sorted(path.stem for path in CONFIGS.glob('*.py'))
# One ResNet and one Swin, both recipes, both datasets.
ONE_PER_FAMILY = [
    'mask2former_r50_ade20k',
    'mask2former_r101_cityscapes_mmseg',
    'mask2former_swin-t_cityscapes',
    'mask2former_swin-b-in22k_ade20k_mmseg',
]


@cache
def load(row: str) -> Config:
    """The resolved configuration, to be left as it is."""
    return Config.fromfile(CONFIGS / f'{row}.py')


def digest(cfg: Config) -> str:
    """Of all that the row says, except the loggers, which depend on what is installed."""
    content = {k: v for k, v in cfg.to_dict().items() if k not in ('vis_backends', 'visualizer')}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    RECORD.write_text(json.dumps({row: digest(load(row)) for row in ROWS}, indent=2) + '\n')


if __name__ == '__main__':
    main()
