"""Every stock Mask2Former config of the installed packages with ``mmseg_m2f.dropin`` imported.

In processes of their own: the stock names stay shadowed as long as a process lives.
"""

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.parity.stock_heads import FLOAT32

pytest.importorskip('mmdet')

REPOSITORY = Path(__file__).parents[2]
# mmseg's segmentor stays, mmdet's detector is replaced.
MODELS = {
    'mmseg': 'mmseg.models.segmentors.encoder_decoder',
    'mmdet': 'mmseg_m2f.adapters.models.detector',
}
HEADS = {
    'mmseg': 'adapters.models.decode_head.Mask2FormerHead',
    'mmdet': 'adapters.models.universal_head.Mask2FormerUniversalHead',
}
PARTS = [
    'core.pixel_decoder.MSDeformAttnPixelDecoder',
    'core.decoder.MaskedAttentionDecoder',
    'core.matching.HungarianMatcher',
    'core.criterion.MaskClassificationLoss',
    'core.losses.ClassLoss',
    'core.losses.PointMaskLoss',
    'core.losses.PointDiceLoss',
]
# Fewer layers than the stock configs have: five predictions.
LOSSES = {f'{d}loss_{n}' for d in ('d0.', 'd1.', 'd2.', 'd3.', '') for n in ('cls', 'mask', 'dice')}
# Stock configs in the packages, of which one is also run in full size.
NUMBERS = {'mmseg': 13, 'mmdet': 11}
of_both = pytest.mark.parametrize('package', NUMBERS)


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """Return a function that runs the configs of a package once."""
    pytest.importorskip('mmseg')
    return cache(lambda package: look(package, tmp_path_factory.mktemp(package)))


def look(package, folder, *blocked):
    module = 'tests.parity.dropin_models'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', module, package, str(folder), *blocked],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f'{package}.json').read_text())


@of_both
def test_every_config_builds_on_our_parts(package, seen):
    parts = [f'mmseg_m2f.{part}' for part in (HEADS[package], *PARTS)]
    assert len(seen(package)) == NUMBERS[package] + 1
    for name, config in seen(package).items():
        assert (config['model'], config['parts']) == (MODELS[package], parts), name


@of_both
def test_stock_weights_give_the_stock_logits(package, seen):
    """Differences are shares of the range of the logits, in float32 as mmdet's positions are."""
    for name, config in seen(package).items():
        assert max(config['classes'], config['masks']) <= FLOAT32, name
        # Share of attention masks that differ: logits within rounding of the threshold.
        assert config['attention'] < 1e-3, name


@of_both
def test_trains_two_iterations(package, seen):
    """The stock optimizer decays no level embedding; the stock pixel decoder's has another name."""
    head = 'decode_head' if package == 'mmseg' else 'panoptic_head'
    no_decay = {f'{head}.pixel_decoder.level_embed': 0, f'{head}.decoder.level_embed.weight': 0}
    trained = [config for config in seen(package).values() if 'steps' in config]
    assert len(trained) == NUMBERS[package]
    for config in trained:
        assert config['decay'] == no_decay
        for losses in config['steps']:
            assert {name.removeprefix('decode.') for name in losses} == LOSSES | {'loss'}
            assert all(math.isfinite(value) for value in losses.values())
        first, second = (losses['loss'] for losses in config['steps'])
        assert first != second


def test_runs_to_the_end_without_mmseg(tmp_path):
    """The runner trains and tests with the stock data set, pipeline and metric."""
    assert math.isfinite(look('mmdet', tmp_path, 'mmseg')['coco/segm_mAP'])
