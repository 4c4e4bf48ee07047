"""Stock configs become our heads; what our parts cannot follow is refused by name."""

import re

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope

from mmseg_m2f.registry import MODELS

pytest.importorskip('mmdet')

from mmseg_m2f.adapters.migrate import dropin
from tests.parity import trajectories

NUM_CLASSES = trajectories.NUM_THINGS + trajectories.NUM_STUFF
ENCODER, DECODER = 'pixel_decoder.encoder.layer_cfg', 'transformer_decoder.layer_cfg'
COSTS = 'train_cfg.assigner.match_costs'


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def model_config(changes=()):
    """Return mmdet's narrow detector with some values set at dotted paths."""
    cfg = Config(trajectories.stock_model().to_dict())
    cfg.merge_from_dict(dict(changes))
    return cfg._cfg_dict


def head_config(changes=()):
    model = model_config()
    head = Config({**model.panoptic_head, 'train_cfg': model.train_cfg})
    head.merge_from_dict(dict(changes))
    head.pop('type')
    return head._cfg_dict


def build(changes):
    return dropin.build_universal_head(**head_config(changes))


@pytest.fixture
def translate(monkeypatch):
    """Return a function that gives the arguments of our detector for those of mmdet's."""
    monkeypatch.setattr(dropin, 'build_detector', lambda **keys: keys)
    return dropin.build_stock_detector


def test_every_size_and_weight_arrives():
    changes = {
        'pixel_decoder.encoder.num_layers': 2,
        f'{ENCODER}.self_attn_cfg.num_heads': 4,
        f'{ENCODER}.self_attn_cfg.num_points': 2,
        f'{ENCODER}.ffn_cfg.feedforward_channels': 48,
        f'{DECODER}.self_attn_cfg.num_heads': 2,
        f'{DECODER}.cross_attn_cfg.num_heads': 2,
        f'{DECODER}.ffn_cfg.feedforward_channels': 96,
        'loss_cls.loss_weight': 2.5,
        'loss_mask.loss_weight': 4.0,
        'loss_dice.loss_weight': 6.0,
        'train_cfg.num_points': 50,
        'train_cfg.oversample_ratio': 2.0,
        'train_cfg.importance_sample_ratio': 0.5,
        f'{COSTS}.0.weight': 1.5,
        f'{COSTS}.1.weight': 3.0,
        f'{COSTS}.2.weight': 1.0,
        'compat': {'init': 'mmdet'},
    }
    torch.manual_seed(1)
    built = build(changes)
    head = built.resolved_config()
    assert (head['num_classes'], head['thing_ids']) == (NUM_CLASSES, [0, 1, 2, 3, 4])
    assert (head['in_channels'], head['num_queries']) == ([16, 32, 64, 128], 12)
    assert head['class_weight'] == [1.0] * NUM_CLASSES + [0.1]
    pixel_decoder = {'channels': 64, 'num_layers': 2, 'num_heads': 4, 'num_points': 2}
    pixel_decoder |= {'num_levels': 3, 'ffn_dim': 48, 'norm_groups': 8}
    assert pixel_decoder.items() <= head['pixel_decoder'].items()
    decoder = {'channels': 64, 'num_layers': 3, 'num_heads': 2, 'ffn_dim': 96, 'num_levels': 3}
    assert decoder.items() <= head['decoder'].items()
    parts = ('cls', 'mask', 'dice')
    assert [head['losses'][part]['weight'] for part in parts] == [2.5, 4.0, 6.0]
    points = {'num_points': 50, 'oversample_ratio': 2.0, 'importance_ratio': 0.5}
    assert points.items() <= head['losses']['points'].items()
    assert [head['matcher']['costs'][part]['weight'] for part in parts] == [1.5, 3.0, 1.0]
    assert head['compat']['init'] == 'mmdet'
    # The stock head that was read draws none of the user's random numbers.
    torch.manual_seed(1)
    own = MODELS.build({'type': 'mmseg_m2f.Mask2FormerUniversalHead', **head})
    pairs = zip(built.parameters(), own.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_semantic_head_has_its_own_keys():
    pytest.importorskip('mmseg')
    config = head_config({'num_classes': 4, 'align_corners': True, 'ignore_index': 9})
    config.loss_cls.class_weight = [1.0] * 4 + [0.1]
    head = dropin.build_semantic_head(**config).resolved_config()
    assert (head['num_classes'], head['align_corners'], head['ignore_index']) == (4, True, 9)


def test_what_may_be_left_out():
    config = head_config()
    del config.loss_cls['class_weight']
    for key in ('num_things_classes', 'num_stuff_classes', 'num_queries', 'strides', 'train_cfg'):
        del config[key]
    head = dropin.build_universal_head(**config).resolved_config()
    assert (head['num_classes'], len(head['thing_ids']), head['num_queries']) == (133, 80, 100)
    assert head['class_weight'] is None
    assert head['losses']['points']['num_points'] == 12544


def test_other_losses_and_costs_stay_mmdet_s():
    focal = {'_delete_': True, 'type': 'FocalLoss', 'use_sigmoid': True, 'loss_weight': 3.0}
    head = build({'loss_mask': focal, f'{COSTS}.2.eps': 0.001})
    assert head.criterion.mask_loss.loss.loss_weight == 3.0
    assert type(head.criterion.mask_loss.loss).__module__.startswith('mmdet')
    names = [type(getattr(cost, 'cost', cost)).__name__ for cost in head.matcher.costs]
    assert names == ['ClassCost', 'PointMaskCost', 'DiceCost']


def test_the_detector_s_settings(translate):
    model = model_config()
    model.test_cfg = {'iou_thr': 0.7, 'instance_on': True, 'score_thr': 0.1}
    ours = translate(**model)
    unchanged = ('type', 'data_preprocessor', 'backbone')
    assert {key: ours[key] for key in unchanged} == {key: model[key] for key in unchanged}
    assert set(ours) == {*unchanged, 'init_cfg', 'panoptic_head', 'test_cfg'}
    assert ours['panoptic_head']['train_cfg'] == model.train_cfg
    results = {'panoptic_on': True, 'semantic_on': False, 'instance_on': True, 'score_thr': 0.1}
    thresholds = {'max_per_image': 100, 'object_mask_thr': 0.8, 'overlap_thr': 0.7}
    assert ours['test_cfg'] == {**results, **thresholds}
    # train_cfg may stand inside the head.
    model.panoptic_head.train_cfg = model.pop('train_cfg')
    assert translate(**model) == ours
    # A head of ours stays as it is.
    head = {'type': 'mmseg_m2f.Mask2FormerUniversalHead', 'num_classes': 5}
    assert translate(panoptic_head=head)['panoptic_head'] == head


def test_pixels_outside_the_masks(translate):
    """``filter_low_score`` decides, unless ``compat`` does."""
    for test_cfg, compat, expected in (
        ({'filter_low_score': True}, None, True),
        (None, {}, False),
        ({}, {'panoptic_mask_intersection': True}, True),
    ):
        model = model_config({'panoptic_head.compat': compat})
        model.test_cfg = test_cfg
        ours = translate(**model)['panoptic_head']['compat']
        assert ours == {'panoptic_mask_intersection': expected}


BATCH_NORM = {'_delete_': True, 'type': 'BN'}
OTHER_ASSIGNER = {'_delete_': True, 'type': 'MaxIoUAssigner', 'pos_iou_thr': 1, 'neg_iou_thr': 0}


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('color', 1, "the head does not know ['color']; known keys: ['enforce_decoder_"),
        ('train_cfg.points', 5, "train_cfg does not know ['points']; known keys"),
        ('pixel_decoder.levels', 1, 'MSDeformAttnPixelDecoder.__init__() got an unexpected'),
        (f'{DECODER}.cross_attn_cfg.heads', 1, "unexpected keyword argument 'heads'"),
        ('pixel_decoder.type', 'PixelDecoder', 'PixelDecoder.__init__() got an unexpected keyword'),
        ('num_transformer_feat_level', 4, 'the stock head fails with AssertionError'),
        ('loss_mask', None, 'the stock head fails with TypeError'),
        ('num_classes', 5, 'num_classes is 5, but things and stuff are 5 and 6'),
        ('loss_cls.class_weight', [1.0] * 9, 'class_weight must have num_classes (11) entries'),
        ('out_channels', 128, 'mask_feature.weight of the head has the shape (128, 64, '),
        ('enforce_decoder_input_project', True, 'panoptic_head.decoder_input_projs.0.weight'),
        ('pixel_decoder.num_outs', 4, 'has num_outs = 4, our parts have 3 only'),
        ('positional_encoding.normalize', False, 'has normalize = False, our parts have True'),
        ('positional_encoding.num_feats', 16, 'has num_feats = 16, our parts have 32 only'),
        ('pixel_decoder.norm_cfg', BATCH_NORM, 'input_convs.0.bn of the head is torch.BatchNorm2d'),
        ('pixel_decoder.norm_cfg.requires_grad', False, 'gn.weight of the head has requires_grad='),
        ('pixel_decoder.act_cfg.type', 'GELU', 'output_convs.0.activate of the head is torch.GELU'),
        ('pixel_decoder.act_cfg', None, 'has with_activation = False, our parts have True only'),
        (f'{ENCODER}.self_attn_cfg.dropout', 0.1, '(torch.Dropout) has p = 0.1, our parts have 0'),
        (f'{ENCODER}.ffn_cfg.num_fcs', 3, '(mmcv.FFN) has num_fcs = 3, our parts have 2 only'),
        (f'{DECODER}.self_attn_cfg.proj_drop', 0.1, '(torch.Dropout) has p = 0.1, our parts'),
        (f'{DECODER}.self_attn_cfg.num_heads', 4, 'num_heads is [4, 8], our parts have one'),
        (f'{DECODER}.norm_cfg', {'type': 'BN1d'}, 'norms.0 of the head is torch.BatchNorm1d'),
        ('train_cfg.sampler.type', 'PseudoSampler', 'the sampler is mmdet.PseudoSampler'),
        ('train_cfg.assigner', OTHER_ASSIGNER, 'the assigner is mmdet.MaxIoUAssigner'),
        ('compat', {'color': 1}, "does not know ['color']"),
    ],
)
def test_what_our_parts_cannot_follow_is_refused(path, value, message):
    with pytest.raises(ValueError, match=f'^panoptic_head: .*{re.escape(message)}'):
        build({path: value})


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('fusion', 1, r"mmseg_m2f.Mask2Former does not know \['fusion'\]; known keys: "),
        ('test_cfg.iou', 1, r"test_cfg does not know \['iou'\]; known keys: "),
        ('panoptic_fusion_head.color', 1, r"does not know \['color'\]"),
        ('panoptic_fusion_head.type', 'HeuristicFusionHead', "type is 'HeuristicFusionHead'"),
        ('panoptic_fusion_head.num_things_classes', 9, 'num_things_classes is 9, our parts have 5'),
    ],
)
def test_what_the_detector_cannot_follow_is_refused(path, value, message):
    model = model_config({path: value})
    del model['type']
    with pytest.raises(ValueError, match=message):
        dropin.build_stock_detector(**model)
