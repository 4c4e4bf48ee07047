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

REPOSITORY = Path(__file__).parents[2]
PARTS = [
    'core.pixel_decoder.MSDeformAttnPixelDecoder',
    'core.decoder.MaskedAttentionDecoder',
    'core.matching.HungarianMatcher',
    'core.criterion.MaskClassificationLoss',
    'core.losses.ClassLoss',
    'core.losses.PointMaskLoss',
    'core.losses.PointDiceLoss',
]
HEADS = {
    'mmseg': 'models.decode_head.Mask2FormerHead',
    'mmdet': 'models.universal_head.Mask2FormerUniversalHead',
}
# Fewer layers than the stock configs have: five predictions.
LOSSES = {f'{d}loss_{n}' for d in ('d0.', 'd1.', 'd2.', 'd3.', '') for n in ('cls', 'mask', 'dice')}
NAMES = {
    'mmseg': [
        'mask2former_r101_8xb2-160k_ade20k-512x512',
        'mask2former_r101_8xb2-90k_cityscapes-512x1024',
        'mask2former_r50_8xb2-160k_ade20k-512x512',
        'mask2former_r50_8xb2-90k_cityscapes-512x1024',
        'mask2former_swin-b-in1k-384x384-pre_8xb2-160k_ade20k-640x640',
        'mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640',
        'mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024',
        'mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640',
        'mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024',
        'mask2former_swin-s_8xb2-160k_ade20k-512x512',
        'mask2former_swin-s_8xb2-90k_cityscapes-512x1024',
        'mask2former_swin-t_8xb2-160k_ade20k-512x512',
        'mask2former_swin-t_8xb2-90k_cityscapes-512x1024',
    ],
    'mmdet': [
        'mask2former_r101_8xb2-lsj-50e_coco-panoptic',
        'mask2former_r101_8xb2-lsj-50e_coco',
        'mask2former_r50_8xb2-lsj-50e_coco-panoptic',
        'mask2former_r50_8xb2-lsj-50e_coco',
        'mask2former_swin-b-p4-w12-384-in21k_8xb2-lsj-50e_coco-panoptic',
        'mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic',
        'mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic',
        'mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic',
        'mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco',
        'mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic',
        'mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco',
    ],
}
FULL = [
    ('mmseg', 'mask2former_r50_8xb2-90k_cityscapes-512x1024 in full'),
    ('mmdet', 'mask2former_r50_8xb2-lsj-50e_coco-panoptic in full'),
]
ALL = [(package, name) for package, names in NAMES.items() for name in names]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """Return a function that runs the configs of a package once, in a process of its own."""
    pytest.importorskip('mmdet')
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


def assert_trains(package, config):
    prefix = 'decode.' if package == 'mmseg' else ''
    assert len(config['steps']) == 2
    for losses in config['steps']:
        assert {name.removeprefix(prefix) for name in losses} == LOSSES | {'loss'}
        assert all(math.isfinite(value) for value in losses.values())
    first, second = (losses['loss'] for losses in config['steps'])
    assert first != second


@pytest.mark.parametrize('package', NAMES)
def test_no_config_is_forgotten(package, seen):
    assert sorted(seen(package)) == sorted([*NAMES[package], *(n for p, n in FULL if p == package)])


@pytest.mark.parametrize(('package', 'name'), [*ALL, *FULL])
def test_builds_on_our_parts(package, name, seen):
    config = seen(package)[name]
    assert config['parts'] == [f'mmseg_m2f.{p}' for p in (f'adapters.{HEADS[package]}', *PARTS)]
    # mmseg's segmentor stays, mmdet's detector is replaced.
    ours = 'mmseg_m2f.adapters.models.detector'
    assert config['model'] == (
        ours if package == 'mmdet' else 'mmseg.models.segmentors.encoder_decoder'
    )


@pytest.mark.parametrize(('package', 'name'), [*ALL, *FULL])
def test_stock_weights_give_the_stock_logits(package, name, seen):
    """Differences are shares of the range of the logits, in float32 as mmdet's positions are."""
    config = seen(package)[name]
    assert max(config['classes'], config['masks']) <= FLOAT32
    # Share of attention masks that differ: logits within rounding of the threshold.
    assert config['attention'] < 1e-3


@pytest.mark.parametrize(('package', 'name'), ALL)
def test_trains_two_iterations(package, name, seen):
    assert_trains(package, seen(package)[name])


@pytest.mark.parametrize('package', NAMES)
def test_the_stock_optimiser_does_not_decay_our_level_embeddings(package, seen):
    """The stock head decays that of the pixel decoder, which has another name there."""
    head = 'decode_head' if package == 'mmseg' else 'panoptic_head'
    expected = [f'{head}.pixel_decoder.level_embed', f'{head}.decoder.level_embed.weight']
    for name in NAMES[package]:
        assert seen(package)[name]['decay'] == dict.fromkeys(expected, 0.0)


@pytest.mark.parametrize(
    ('package', 'absent', 'metric'),
    [('mmseg', 'mmdet', 'mIoU'), ('mmdet', 'mmseg', 'coco/segm_mAP')],
)
def test_runs_to_the_end_without_the_other_package(package, absent, metric, tmp_path):
    """The runner trains and tests with the stock data set, pipeline and metric."""
    pytest.importorskip(package)
    configs = look(package, tmp_path, absent)
    [metrics] = configs.values()
    assert math.isfinite(metrics[metric])
