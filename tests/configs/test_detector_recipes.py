"""Instance and panoptic rows against the official configurations and numbers, typed anew."""

import copy
import re

import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

from mmseg_m2f import core
from mmseg_m2f.metadata import load_metadata
from tests.configs.rows import DETECTOR_ROWS, load, metafile_models, parse

# Row, queries, the published metrics as the metafile has them.
PUBLISHED = """
r50_coco-panoptic                100 51.9 41.7 61.7
r101_coco-panoptic               100 52.6 42.6 62.4
swin-t_coco-panoptic             100 53.2 43.3 63.2
swin-s_coco-panoptic             100 54.6 44.7 64.2
swin-b-in1k_coco-panoptic        100 55.1 45.2 65.1
swin-b-in22k_coco-panoptic       100 56.4 46.3 67.1
swin-l_coco-panoptic             200 57.8 48.6 67.4
r50_coco-instance                100 43.7 30.6
r101_coco-instance               100 44.2 31.1
swin-t_coco-instance             100 45.0 31.8
swin-s_coco-instance             100 46.3 32.9
swin-b-in1k_coco-instance        100 46.7 33.2
swin-b-in22k_coco-instance       100 48.1 34.4
swin-l_coco-instance             200 50.1 36.2
r50_cityscapes-panoptic          100 62.1 37.3 77.5
r101_cityscapes-panoptic         100 62.4 37.7 78.6
swin-t_cityscapes-panoptic       100 63.9 39.1 80.5
swin-s_cityscapes-panoptic       100 64.8 40.7 81.8
swin-b-in22k_cityscapes-panoptic 100 66.1 42.8 82.7
swin-l_cityscapes-panoptic       200 66.6 43.6 82.9
r50_cityscapes-instance          100 37.4 61.9
r101_cityscapes-instance         100 38.5 63.9
swin-t_cityscapes-instance       100 39.7 66.9
swin-s_cityscapes-instance       100 41.8 70.4
swin-b-in22k_cityscapes-instance 100 42.0 68.8
swin-l_cityscapes-instance       200 43.7 71.4
r50_ade20k-panoptic              100 39.7 26.5 46.1
swin-l_ade20k-panoptic           200 48.1 34.2 54.5
r50_ade20k-instance              100 26.4
swin-l_ade20k-instance           200 34.9
r50_mapillary-panoptic           100 36.3 50.7
swin-l_mapillary-panoptic        200 45.5 60.8
"""
TABLE = {
    f'mask2former_{name}': (int(queries), [float(m) for m in metrics])
    for name, queries, *metrics in map(str.split, PUBLISHED.split('\n')[1:-1])
}
NUM_CLASSES = {
    'coco-panoptic': 133,
    'coco-instance': 80,
    'cityscapes-panoptic': 19,
    'cityscapes-instance': 8,
    'ade20k-panoptic': 150,
    'ade20k-instance': 100,
    'mapillary-panoptic': 65,
}
# Semantic, instances, panoptic.
ALL, INSTANCES, NO_INSTANCES = (True, True, True), (False, True, False), (True, False, True)
# The main metric first: the best checkpoint is the best by it.
METRICS = {
    'coco-panoptic': ['PanopticMetric', 'InstanceMetric', 'SemanticMetric'],
    'coco-instance': ['InstanceMetric'],
    'cityscapes-panoptic': [
        'PanopticMetric',
        'CityscapesInstanceMetric',
        'InstanceMetric',
        'SemanticMetric',
    ],
    'cityscapes-instance': ['CityscapesInstanceMetric', 'InstanceMetric'],
    'ade20k-panoptic': ['PanopticMetric', 'InstanceMetric', 'SemanticMetric'],
    'ade20k-instance': ['InstanceMetric'],
    'mapillary-panoptic': ['PanopticMetric', 'SemanticMetric'],
}
BEST = {
    'PanopticMetric': 'coco_panoptic/PQ',
    'InstanceMetric': 'coco/segm_mAP',
    'CityscapesInstanceMetric': 'cityscapes/AP',
}
every_row = pytest.mark.parametrize('row', DETECTOR_ROWS)


def kind(row: str) -> str:
    return f'{parse(row).dataset}-{parse(row).task}'


def evaluators(cfg) -> list:
    return cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]


def test_the_table_has_every_row():
    assert sorted(TABLE) == DETECTOR_ROWS


@every_row
def test_queries_classes_and_published_numbers(row):
    queries, metrics = TABLE[row]
    head = load(row).model.panoptic_head
    assert head.get('num_queries', 100) == queries
    assert head.num_classes == NUM_CLASSES[kind(row)]
    assert list(metafile_models()[row]['Results'][0]['Metrics'].values()) == metrics


@every_row
def test_which_results_and_thresholds(row):
    cfg = load(row)
    config = core.PostprocessConfig(**cfg.model.test_cfg)
    results = ALL if parse(row).task == 'panoptic' else INSTANCES
    if kind(row) == 'mapillary-panoptic':
        results = NO_INSTANCES
    assert (config.semantic_on, config.instance_on, config.panoptic_on) == results
    assert config.object_mask_thr == (0.0 if kind(row) == 'mapillary-panoptic' else 0.8)
    assert (config.overlap_thr, config.score_thr, config.max_per_image) == (0.8, 0.0, 100)
    assert not config.non_overlap


@every_row
def test_metrics(row):
    cfg = load(row)
    assert cfg.val_evaluator == cfg.test_evaluator
    metrics = METRICS[kind(row)]
    assert [evaluator.type for evaluator in evaluators(cfg)] == [f'mmseg_m2f.{m}' for m in metrics]
    checkpoints = cfg.default_hooks.checkpoint
    assert (checkpoints.save_best, checkpoints.rule) == (BEST[metrics[0]], 'greater')


@every_row
def test_data_set_and_head_have_the_same_classes(row):
    cfg = load(row)
    names = {cfg[f'{name}_dataloader'].dataset.metadata for name in ('train', 'val', 'test')}
    (name,) = names
    metadata, head = load_metadata(name), cfg.model.panoptic_head
    assert len(metadata.classes) == head.num_classes
    assert list(metadata.thing_ids) == head.get('thing_ids', list(range(head.num_classes)))


@every_row
def test_only_instances_of_coco_leave_out_emptied_ones(row):
    """They also leave out images without any."""
    dataset = load(row).train_dataloader.dataset
    keeps = kind(row) != 'coco-instance'
    assert dataset.pipeline[-1].get('keep_empty', True) == keeps
    assert dataset.get('filter_empty', False) == (not keeps)


@pytest.mark.parametrize(
    ('dataset', 'size', 'expected'),
    [
        ('coco', (480, 640), (800, 1067)),
        ('coco', (426, 640), (800, 1202)),
        ('coco', (200, 640), (417, 1333)),
        ('cityscapes', (1024, 2048), (1024, 2048)),
        ('ade20k', (300, 400), (640, 853)),
        ('mapillary', (2448, 3264), (1536, 2048)),
    ],
)
def test_sizes_of_test_images(dataset, size, expected):
    init_default_scope('mmdet')
    pipeline = load(f'mask2former_r50_{dataset}-panoptic').test_dataloader.dataset.pipeline
    results = {'img': torch.zeros(*size, 3, dtype=torch.uint8).numpy(), 'img_shape': size}
    assert Compose(pipeline[1:2])(results)['img'].shape[:2] == expected


def test_ade20k_instances_are_the_same_with_the_other_results_on():
    """The official configuration has all on; ours only what is scored."""
    torch.manual_seed(0)
    prediction = torch.randn(20, 101) * 4, torch.randn(20, 12, 16)
    is_thing = torch.ones(100, dtype=torch.bool)
    geometry = core.ImageGeometry(padded=(48, 64), resized=(40, 60), original=(50, 75))
    settings = load('mask2former_r50_ade20k-instance').model.test_cfg
    results = []
    for config in (core.PostprocessConfig(**settings), core.PostprocessConfig()):
        results.append(core.instances(*prediction, geometry, is_thing, config))
    ours, theirs = results
    assert len(ours.labels) == len(theirs.labels) == 100
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


OLD_NAMES = {
    'stages': 'layers',
    'attn.w_msa': 'attn',
    'ffn.layers.0.0': 'mlp.fc1',
    'ffn.layers.1': 'mlp.fc2',
    'patch_embed.projection': 'patch_embed.proj',
}


@pytest.mark.parametrize('name', ['swin-t', 'swin-s', 'swin-b-in1k', 'swin-b-in22k', 'swin-l'])
def test_mmdet_s_swin_takes_the_weights_of_the_original_file(name, tmp_path):
    """Its loader takes what fits and is silent about the rest."""
    init_default_scope('mmdet')
    backbone = copy.deepcopy(load(f'mask2former_{name}_coco-panoptic').model.backbone)
    backbone.update(embed_dims=4 * backbone.num_heads[0], depths=[1, 1, 1, 1])
    model = MODELS.build({**backbone, 'init_cfg': None})
    # Every weight holds a number of its own, under its name in the original file.
    numbers = {name: float(i) for i, (name, _) in enumerate(model.named_parameters())}
    weights = {}
    for key, value in model.named_parameters():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old)
        weights[key] = torch.full_like(value, len(weights))
    # The norms of the four outputs are no part of a classifier.
    weights = {key: value for key, value in weights.items() if not re.match(r'norm\d', key)}
    torch.save({'model': weights}, tmp_path / 'swin.pth')
    backbone.init_cfg.checkpoint = str(tmp_path / 'swin.pth')
    model = MODELS.build(backbone)
    model.init_weights()
    for key, value in model.named_parameters():
        if not re.match(r'norm\d', key):
            assert (value == numbers[key]).all(), key
