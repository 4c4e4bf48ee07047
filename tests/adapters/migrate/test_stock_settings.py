"""Stock settings are translated into ours; what our parts cannot follow is refused by name."""

import copy
import math

import pytest

from mmseg_m2f.adapters.migrate import stock_settings
from mmseg_m2f.registry import MODELS


def attention(**options):
    return {'embed_dims': 64, 'num_heads': 4, 'batch_first': True, **options}


def ffn(hidden):
    return {'embed_dims': 64, 'feedforward_channels': hidden, 'num_fcs': 2, 'ffn_drop': 0.0}


def stock_head(num_weights=5, **keys):
    """Return a head as in the configs of mmdet, but narrow."""
    encoder_attention = attention(num_levels=3, num_points=2, im2col_step=64, dropout=0.0)
    decoder_layer = {
        'self_attn_cfg': attention(dropout=0.0),
        'cross_attn_cfg': attention(dropout=0.0),
        'ffn_cfg': {**ffn(96), 'act_cfg': {'type': 'ReLU', 'inplace': True}},
    }
    return {
        'in_channels': [8, 16, 32, 64],
        'strides': [4, 8, 16, 32],
        'feat_channels': 64,
        'out_channels': 64,
        'num_queries': 7,
        'num_transformer_feat_level': 3,
        'pixel_decoder': {
            'type': 'mmdet.MSDeformAttnPixelDecoder',
            'num_outs': 3,
            'norm_cfg': {'type': 'GN', 'num_groups': 8},
            'act_cfg': {'type': 'ReLU'},
            'encoder': {
                'num_layers': 2,
                'layer_cfg': {'self_attn_cfg': encoder_attention, 'ffn_cfg': ffn(48)},
            },
            'positional_encoding': {'num_feats': 32, 'normalize': True},
        },
        'enforce_decoder_input_project': False,
        'positional_encoding': {'num_feats': 32, 'normalize': True},
        'transformer_decoder': {
            'return_intermediate': True,
            'num_layers': 3,
            'layer_cfg': decoder_layer,
            'init_cfg': None,
        },
        'loss_cls': {
            'type': 'CrossEntropyLoss',
            'loss_weight': 2.5,
            'reduction': 'mean',
            'class_weight': [1.0] * num_weights + [0.3],
        },
        'loss_mask': {'type': 'CrossEntropyLoss', 'use_sigmoid': True, 'loss_weight': 4.0},
        'loss_dice': {
            'type': 'DiceLoss',
            'use_sigmoid': True,
            'activate': True,
            'naive_dice': True,
            'eps': 1.0,
            'loss_weight': 6.0,
        },
        **keys,
    }


TRAIN = {
    'num_points': 50,
    'oversample_ratio': 2.0,
    'importance_sample_ratio': 0.5,
    'assigner': {
        'type': 'HungarianAssigner',
        'match_costs': [
            {'type': 'ClassificationCost', 'weight': 2.0},
            {'type': 'CrossEntropyLossCost', 'weight': 3.0, 'use_sigmoid': True},
            {'type': 'DiceCost', 'weight': 1.0, 'pred_act': True, 'eps': 1.0},
        ],
    },
    'sampler': {'type': 'MaskPseudoSampler'},
}
THINGS = {'num_things_classes': 3, 'num_stuff_classes': 2}


def stock_model(**keys):
    return {
        'backbone': {'type': 'ResNet'},
        'panoptic_head': {'type': 'Mask2FormerHead', **stock_head(**THINGS)},
        'panoptic_fusion_head': {
            'type': 'MaskFormerFusionHead',
            'loss_panoptic': None,
            'init_cfg': None,
            **THINGS,
        },
        'train_cfg': TRAIN,
        'test_cfg': {'iou_thr': 0.7, 'filter_low_score': True, 'instance_on': True},
        **keys,
    }


def resolved(config, name='Mask2FormerUniversalHead'):
    """Build our head and return its config with all defaults."""
    return MODELS.build({'type': f'mmseg_m2f.{name}', **config}).resolved_config()


def changed(path, value):
    """Return the stock head with one setting changed, at a dotted path; ``...`` removes it."""
    head = copy.deepcopy(stock_head(**THINGS))
    node, (*parents, last) = head, path.split('.')
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return head


def test_every_size_and_weight_arrives():
    head = resolved(stock_settings.universal_head({**stock_head(**THINGS), 'train_cfg': TRAIN}))
    assert head['num_classes'] == 5
    assert head['thing_ids'] == [0, 1, 2]
    assert head['num_queries'] == 7
    assert head['class_weight'] == [1.0] * 5 + [0.3]
    part = head['pixel_decoder']
    assert {key: part[key] for key in part if key not in ('type', 'attention', 'in_channels')} == {
        'channels': 64,
        'num_layers': 2,
        'num_heads': 4,
        'num_points': 2,
        'num_levels': 3,
        'ffn_dim': 48,
        'norm_groups': 8,
        'checkpointing': False,
        'mixed_precision': False,
    }
    part = head['decoder']
    assert (part['channels'], part['num_layers'], part['num_heads']) == (64, 3, 4)
    assert (part['ffn_dim'], part['num_levels']) == (96, 3)
    assert [head['losses'][name]['weight'] for name in ('cls', 'mask', 'dice')] == [2.5, 4, 6]
    points = {key: value for key, value in head['losses']['points'].items() if key != 'type'}
    assert points == {'num_points': 50, 'oversample_ratio': 2.0, 'importance_ratio': 0.5}
    costs = head['matcher']['costs']
    assert [costs[name]['weight'] for name in ('cls', 'mask', 'dice')] == [2.0, 3.0, 1.0]
    assert head['matcher']['num_points'] == 50


def test_a_semantic_head_has_its_own_keys():
    stock = stock_head(align_corners=True, ignore_index=9, train_cfg=TRAIN)
    stock['loss_cls']['class_weight'] = [1.0] * 4 + [0.1]
    stock['num_classes'] = 4
    head = resolved(stock_settings.semantic_head(stock), 'Mask2FormerHead')
    assert (head['num_classes'], head['align_corners'], head['ignore_index']) == (4, True, 9)
    del stock['num_classes']
    by_parts = stock_settings.semantic_head(
        {**stock, 'num_things_classes': 4, 'num_stuff_classes': 0}
    )
    assert by_parts['num_classes'] == 4


def test_the_numbers_of_classes_in_either_form():
    def classes(**numbers):
        head = stock_settings.universal_head(stock_head(**numbers))
        return head['num_classes'], len(head['thing_ids'])

    assert classes(num_classes=5) == (5, 5)
    assert classes(num_classes=5, num_things_classes=2) == (5, 2)
    assert classes(num_classes=5, num_stuff_classes=2) == (5, 3)
    assert classes(num_things_classes=5, num_stuff_classes=0) == (5, 5)
    assert classes() == (133, 80)
    with pytest.raises(ValueError, match='num_classes is 5, its things and stuff are 3 and 1'):
        classes(num_classes=5, num_things_classes=3, num_stuff_classes=1)


def test_class_weights_follow_the_classes_unless_given():
    head = resolved(stock_settings.universal_head(changed('loss_cls.class_weight', ...)))
    assert head['class_weight'] is None
    assert resolved(stock_settings.universal_head(changed('loss_cls', ...)))['class_weight'] is None
    with pytest.raises(
        ValueError, match=r'class_weight must have num_classes \(5\) entries.* got 9'
    ):
        resolved(stock_settings.universal_head(changed('loss_cls.class_weight', [1.0] * 9)))


def test_the_detector_s_settings():
    model = stock_model()
    before = copy.deepcopy(model)
    ours = stock_settings.detector(model)
    assert model == before
    keys = {'backbone', 'neck', 'data_preprocessor', 'init_cfg', 'test_cfg', 'panoptic_head'}
    assert set(ours) == keys
    head = ours['panoptic_head']
    assert head['type'] == 'mmseg_m2f.Mask2FormerUniversalHead'
    assert head['losses']['points']['num_points'] == 50
    assert ours['test_cfg'] == {
        'panoptic_on': True,
        'semantic_on': False,
        'instance_on': True,
        'max_per_image': 100,
        'object_mask_thr': 0.8,
        'overlap_thr': 0.7,
        'score_thr': 0.0,
        'non_overlap': False,
    }
    # train_cfg may stand inside the head.
    model['panoptic_head']['train_cfg'] = model.pop('train_cfg')
    assert stock_settings.detector(model) == ours
    # A head of ours stays as it is.
    head = {'type': 'mmseg_m2f.Mask2FormerUniversalHead', 'num_classes': 5}
    model = {'backbone': {}, 'panoptic_head': head}
    assert stock_settings.detector(model)['panoptic_head'] == head


def test_filter_low_score_and_compat_decide_about_pixels_outside_the_masks():
    def compat(test_cfg, **head):
        model = stock_model(test_cfg=test_cfg)
        model['panoptic_head'].update(head)
        return stock_settings.detector(model)['panoptic_head']['compat']

    assert compat({'filter_low_score': True}) == {'panoptic_mask_intersection': True}
    assert compat(None) == {'panoptic_mask_intersection': False}
    own = {'init': 'mmdet', 'panoptic_mask_intersection': True}
    assert compat({}, compat=own) == own


def test_other_losses_and_costs_stay_mmdet_s():
    pytest.importorskip('mmdet')
    focal = {'type': 'FocalLoss', 'use_sigmoid': True, 'loss_weight': 20.0}
    train = copy.deepcopy(TRAIN)
    train['assigner']['match_costs'][2]['eps'] = 0.001
    stock = {**changed('loss_mask', focal), 'train_cfg': train}
    config = stock_settings.universal_head(stock)
    assert config['losses']['mask'] == {**focal, 'type': 'mmdet.FocalLoss'}
    assert config['matcher']['costs']['dice'] is None
    head = MODELS.build({'type': 'mmseg_m2f.Mask2FormerUniversalHead', **config})
    assert type(head.criterion.mask_loss.loss).__module__.startswith('mmdet')
    names = [type(getattr(cost, 'cost', cost)).__name__ for cost in head.matcher.costs]
    assert names == ['ClassCost', 'PointMaskCost', 'DiceCost']


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        (
            'color',
            1,
            r"panoptic_head does not know \['color'\]; known keys: .*'in_channels'",
        ),
        ('out_channels', 128, 'panoptic_head.out_channels is 128, our parts have 64 only'),
        ('enforce_decoder_input_project', True, 'enforce_decoder_input_project is True'),
        ('num_transformer_feat_level', 4, 'pixel_decoder.num_outs is 3, our parts have 4'),
        ('positional_encoding.normalize', False, 'positional_encoding.normalize is False'),
        ('positional_encoding.normalize', ..., 'positional_encoding.normalize is False'),
        ('positional_encoding.num_feats', 16, 'positional_encoding.num_feats is 16'),
        ('positional_encoding.init_cfg', {'type': 'Xavier'}, r"does not know \['init_cfg'\]"),
        ('pixel_decoder.type', 'PixelDecoder', "pixel_decoder.type is 'PixelDecoder'"),
        ('pixel_decoder.levels', 1, r"pixel_decoder does not know \['levels'\]; known keys"),
        ('pixel_decoder.norm_cfg', {'type': 'BN'}, "pixel_decoder.norm_cfg.type is 'BN'"),
        ('pixel_decoder.norm_cfg', None, 'pixel_decoder.norm_cfg is None, our parts have'),
        ('pixel_decoder.act_cfg.type', 'GELU', "act_cfg.type is 'GELU'"),
        ('pixel_decoder.strides', [8, 16, 32, 64], r'strides is \[8, 16, 32, 64\]'),
        (
            'pixel_decoder.encoder.layer_cfg.self_attn_cfg.dropout',
            ...,
            'self_attn_cfg.dropout is 0.1, our parts have 0.0 only',
        ),
        ('pixel_decoder.encoder.layer_cfg.ffn_cfg.num_fcs', 3, 'ffn_cfg.num_fcs is 3'),
        ('transformer_decoder.layer_cfg.self_attn_cfg.attn_drop', 0.1, 'attn_drop is 0.1'),
        ('transformer_decoder.layer_cfg.self_attn_cfg.num_heads', 8, 'self-attention has 8 heads'),
        ('transformer_decoder.layer_cfg.cross_attn_cfg.dropout', 0.1, 'cross_attn_cfg.dropout is'),
        ('transformer_decoder.layer_cfg.cross_attn_cfg.heads', 1, r"does not know \['heads'\]"),
        ('transformer_decoder.layer_cfg.norm_cfg', {'type': 'BN'}, 'layer_cfg.norm_cfg.type'),
        ('train_cfg', {'points': 5}, r"train_cfg does not know \['points'\]; known keys"),
        ('train_cfg', {'sampler': {'type': 'Other'}}, "train_cfg.sampler.type is 'Other'"),
        ('train_cfg', {'assigner': {'type': 'Other'}}, "train_cfg.assigner.type is 'Other'"),
    ],
)
def test_what_our_parts_cannot_follow_is_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        stock_settings.universal_head(changed(path, value))


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'fusion': 1}, r"model does not know \['fusion'\]; known keys: \['backbone', 'neck', 'p"),
        ({'test_cfg': {'iou': 1}}, r"test_cfg does not know \['iou'\]; known keys: .*'iou_thr'"),
        (
            {'panoptic_fusion_head': {'type': 'HeuristicFusionHead', **THINGS}},
            "panoptic_fusion_head.type is 'HeuristicFusionHead'",
        ),
        (
            {'panoptic_fusion_head': {'num_things_classes': 9, 'num_stuff_classes': 2}},
            'panoptic_fusion_head.num_things_classes is 9, our parts have 3 only',
        ),
    ],
)
def test_what_the_detector_cannot_follow_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        stock_settings.detector(stock_model(**keys))


ATTENTION = 'transformer_decoder.layer_cfg.self_attn_cfg'


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        (
            'positional_encoding',
            {'num_feats': 32, 'normalize': True, 'scale': 2 * math.pi, 'temperature': 10000},
        ),
        ('positional_encoding.init_cfg', None),
        ('positional_encoding._delete_', True),
        (ATTENTION, attention()),
        (ATTENTION, attention(attn_drop=0.0, proj_drop=0.0, dropout_layer=None)),
        (ATTENTION, attention(dropout_layer={'type': 'Dropout', 'drop_prob': 0.0})),
    ],
)
def test_defaults_may_be_spelled_out_or_left_out(path, value):
    ours = stock_settings.universal_head(stock_head(**THINGS))
    assert stock_settings.universal_head(changed(path, value)) == ours


def test_absent_sections_have_the_defaults_of_the_stock_classes():
    with_defaults = {'feat_channels': 256, 'out_channels': 256, 'num_things_classes': 3}
    attention = {'num_levels': 3, 'dropout': 0.0}
    encoder = {'layer_cfg': {'self_attn_cfg': attention}}
    head = stock_settings.universal_head({**with_defaults, 'pixel_decoder': {'encoder': encoder}})
    assert (head['num_queries'], head['num_classes'], head['in_channels']) == (100, 56, None)
    sizes = {'channels': 256, 'num_layers': 6, 'num_levels': 3, 'num_heads': 8, 'num_points': 4}
    assert head['pixel_decoder'] == {**sizes, 'ffn_dim': 1024, 'norm_groups': 32}
