"""Translate the settings of MMDetection's and MMSegmentation's own Mask2Former into ours.

Plain dicts become plain dicts. First a stock config is completed with the defaults of the stock
classes. Then it is compared with what our parts do: a setting that they cannot follow is an error.
So every key is either used or refused.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models.mmdet_losses import SAME_COSTS, SAME_LOSSES

Config = Mapping[str, Any]

# The defaults of the stock classes, section by section. ``init_cfg``, if None, is left out.
_RELU = {'type': 'ReLU', 'inplace': True}
_LAYER_NORM = {'type': 'LN', 'eps': 1e-5, 'requires_grad': True}
_GROUP_NORM = {'type': 'GN', 'num_groups': 32, 'requires_grad': True}
_POSITION = {
    'num_feats': 128,
    'normalize': False,
    'temperature': 10000,
    'scale': 2 * math.pi,
    'eps': 1e-6,
    'offset': 0.0,
}
_FFN = {
    'embed_dims': 256,
    'feedforward_channels': 1024,
    'num_fcs': 2,
    'act_cfg': _RELU,
    'ffn_drop': 0.0,
    'dropout_layer': None,
    'add_identity': True,
    'layer_scale_init_value': 0.0,
}
_ATTENTION = {
    'embed_dims': 256,
    'num_heads': 8,
    'dropout': 0.0,
    'attn_drop': 0.0,
    'proj_drop': 0.0,
    'dropout_layer': None,
    'batch_first': True,
}
_DEFORMABLE_ATTENTION = {
    'embed_dims': 256,
    'num_heads': 8,
    'num_levels': 4,
    'num_points': 4,
    'im2col_step': 64,
    'dropout': 0.1,
    'batch_first': True,
    'norm_cfg': None,
    'value_proj_ratio': 1.0,
}
_LAYER = {'ffn_cfg': _FFN, 'norm_cfg': _LAYER_NORM}
_ENCODER_LAYER = {**_LAYER, 'self_attn_cfg': _DEFORMABLE_ATTENTION}
_DECODER_LAYER = {**_LAYER, 'self_attn_cfg': _ATTENTION, 'cross_attn_cfg': _ATTENTION}
_NETWORK = {
    'enforce_decoder_input_project': False,
    'positional_encoding': _POSITION,
    'pixel_decoder': {
        'type': 'MSDeformAttnPixelDecoder',
        # The stock head writes its own three over these.
        'in_channels': None,
        'feat_channels': None,
        'out_channels': None,
        'strides': [4, 8, 16, 32],
        'num_outs': 3,
        'norm_cfg': _GROUP_NORM,
        'act_cfg': _RELU,
        'encoder': {'num_layers': 6, 'num_cp': -1, 'layer_cfg': _ENCODER_LAYER},
        'positional_encoding': _POSITION,
    },
    'transformer_decoder': {
        'return_intermediate': True,
        'num_layers': 9,
        'layer_cfg': _DECODER_LAYER,
        'post_norm_cfg': _LAYER_NORM,
    },
}
_TRAIN = {
    'num_points': 12544,
    'oversample_ratio': 3.0,
    'importance_sample_ratio': 0.75,
    'assigner': {'type': 'HungarianAssigner', 'match_costs': None},
    'sampler': {'type': 'MaskPseudoSampler'},
}
_HEAD = {
    'in_channels': None,
    'strides': None,
    'feat_channels': 256,
    'out_channels': None,
    'num_classes': None,
    'num_things_classes': None,
    'num_stuff_classes': None,
    'num_queries': 100,
    'num_transformer_feat_level': 3,
    **_NETWORK,
    'loss_cls': None,
    'loss_mask': None,
    'loss_dice': None,
    'train_cfg': _TRAIN,
    'test_cfg': None,
    'init_cfg': None,
    'compat': None,
}
_SEMANTIC_HEAD = {**_HEAD, 'align_corners': False, 'ignore_index': 255}
_TEST = {
    'panoptic_on': True,
    'semantic_on': False,
    'instance_on': False,
    'max_per_image': 100,
    'object_mask_thr': 0.8,
    'iou_thr': 0.8,
    'score_thr': 0.0,
    'filter_low_score': False,
    # Our names, which may be used in a stock config, too.
    'overlap_thr': None,
    'non_overlap': False,
}
_FUSION_HEAD = {
    'type': 'MaskFormerFusionHead',
    'num_things_classes': 80,
    'num_stuff_classes': 53,
    'test_cfg': None,
    'loss_panoptic': None,
}
_DETECTOR = {
    'backbone': None,
    'neck': None,
    'panoptic_head': None,
    'panoptic_fusion_head': None,
    'train_cfg': None,
    'test_cfg': _TEST,
    'data_preprocessor': None,
    'init_cfg': None,
}
# Sections that are {} if they are None. Elsewhere None takes a layer out, which ours always have.
_OPTIONAL = ('train_cfg', 'test_cfg')
# What the stock heads and pixel decoders use if the whole section is absent.
_ABSENT = {'positional_encoding': {'num_feats': 128, 'normalize': True}}
_NO_DROPOUT: tuple[Any, ...] = (None, {}, {'type': 'Dropout', 'drop_prob': 0.0})
# Settings of the network that our parts follow, and those that change no number.
_FOLLOWED = ('num_heads', 'num_points', 'num_layers', 'num_groups', 'feedforward_channels')
_WITHOUT_EFFECT = (
    'in_channels',
    'feat_channels',
    'out_channels',
    'return_intermediate',
    'inplace',
    'im2col_step',
    'norm_cfg',  # as long as the stock class has no section there: it does not read this one
)

# The defaults of the stock losses and costs.
_LOSS_DEFAULTS: dict[str, Config] = {
    'CrossEntropyLoss': {
        'use_sigmoid': False,
        'use_mask': False,
        'reduction': 'mean',
        'class_weight': None,
        'ignore_index': None,
        'avg_non_ignore': False,
        'loss_weight': 1.0,
    },
    'DiceLoss': {
        'use_sigmoid': True,
        'activate': True,
        'reduction': 'mean',
        'naive_dice': False,
        'eps': 1e-3,
        'loss_weight': 1.0,
    },
    'ClassificationCost': {'weight': 1},
    'CrossEntropyLossCost': {'use_sigmoid': True, 'weight': 1},
    'DiceCost': {'pred_act': False, 'eps': 1e-3, 'naive_dice': True, 'weight': 1},
}


def semantic_head(stock: Config) -> dict[str, Any]:
    """Translate the arguments of mmseg's ``Mask2FormerHead`` into those of ours.

    Raises:
        ValueError: a setting that our parts cannot follow, or that the stock head does not know.
    """
    head = _complete(stock, _SEMANTIC_HEAD, 'decode_head')
    num_classes = head['num_classes']
    if num_classes is None:
        num_classes = (head['num_things_classes'] or 0) + (head['num_stuff_classes'] or 0)
    own = {key: head[key] for key in ('align_corners', 'ignore_index')}
    return {**_head(head, 'decode_head', num_classes), **own}


def universal_head(stock: Config) -> dict[str, Any]:
    """Translate the arguments of mmdet's ``Mask2FormerHead`` into those of ours.

    Raises:
        ValueError: a setting that our parts cannot follow, or that the stock head does not know.
    """
    head = _complete(stock, _HEAD, 'panoptic_head')
    num_things, num_stuff = _things_and_stuff(head)
    # Things come first in mmdet.
    things = {'thing_ids': list(range(num_things))}
    return {**_head(head, 'panoptic_head', num_things + num_stuff), **things}


def detector(stock: Config) -> dict[str, Any]:
    """Translate the arguments of mmdet's ``Mask2Former`` into those of ours.

    A panoptic head of ours, named as such, stays as it is.

    Raises:
        ValueError: a setting that our parts cannot follow, or that the stock classes do not know.
    """
    model = _complete(stock, _DETECTOR, 'model')
    test, head = model['test_cfg'], dict(model['panoptic_head'] or {})
    if is_stock(head.get('type'), 'Mask2FormerHead'):
        _check_fusion_head(model['panoptic_fusion_head'], head)
        del head['type']
        head['train_cfg'] = model['train_cfg'] or head.get('train_cfg')
        switch = {'panoptic_mask_intersection': test['filter_low_score']}
        head['compat'] = {**switch, **(head.get('compat') or {})}
        head = {'type': 'mmseg_m2f.Mask2FormerUniversalHead', **universal_head(head)}
    overlap = test['iou_thr'] if test['overlap_thr'] is None else test['overlap_thr']
    renamed = ('iou_thr', 'overlap_thr', 'filter_low_score')
    return {
        **{key: model[key] for key in ('backbone', 'neck', 'data_preprocessor', 'init_cfg')},
        'test_cfg': {
            **{key: value for key, value in test.items() if key not in renamed},
            'overlap_thr': overlap,
        },
        'panoptic_head': head,
    }


def is_stock(type_name: object, name: str) -> bool:
    """Return True for the name itself, and for that name in the scope of mmdet or mmseg."""
    return type_name in (name, f'mmdet.{name}', f'mmseg.{name}')


def _complete(given: Config, defaults: Config, where: str) -> dict[str, Any]:
    """Return ``given`` with the defaults filled in, section by section."""
    # MMEngine leaves `_delete_` in place where the base config had nothing to delete.
    dropped = ({'_delete_': True}, {'_delete_': False}, {'init_cfg': None})
    given = {key: value for key, value in given.items() if {key: value} not in dropped}
    check_keys(where, given, defaults)
    complete = {}
    for key, default in defaults.items():
        value = given.get(key, _ABSENT.get(key, default))
        if isinstance(default, dict):
            if value is None and key not in _OPTIONAL:
                raise ValueError(f'{where}.{key} is None, our parts have that layer always')
            value = _complete(value or {}, default, f'{where}.{key}')
        complete[key] = value
    return complete


def _check_network(settings: Config, stock: Config, ours: Config, where: str) -> None:
    """Refuse the first setting of the network that our parts cannot follow.

    Args:
        settings: a complete section.
        stock: the defaults of the section. Ours are the same,
        ours: except for these keys, in whichever section they are.
        where: the section, for the error.
    """
    for key, default in stock.items():
        if isinstance(default, dict):
            _check_network(settings[key], default, ours, f'{where}.{key}')
        elif key not in _FOLLOWED + _WITHOUT_EFFECT:
            _check(settings, key, ours.get(key, default), where)


def _check(settings: Config, key: str, ours: Any, where: str) -> None:
    value = settings[key]
    if key == 'type':
        same = is_stock(value, ours)
    elif key == 'dropout_layer':
        same = value in _NO_DROPOUT
    else:
        same = (list(value) if isinstance(value, tuple) else value) == ours
    if not same:
        raise ValueError(
            f'{where}.{key} is {value!r}, our parts have {ours!r} only. Set it so, or keep the '
            'stock head: leave mmseg_m2f.dropin out.'
        )


def _head(head: Config, where: str, num_classes: int) -> dict[str, Any]:
    """Translate what both heads share; ``head`` is complete."""
    channels, num_levels = head['feat_channels'], head['num_transformer_feat_level']
    if head['out_channels'] is not None:
        _check(head, 'out_channels', channels, where)
    ours = {
        'embed_dims': channels,
        'num_feats': channels // 2,
        'normalize': True,
        'dropout': 0.0,
        'num_outs': num_levels,
        'num_levels': num_levels,
    }
    _check_network(head, _NETWORK, ours, where)
    losses, class_weight = _losses(head)
    train = head['train_cfg']
    _check(train['sampler'], 'type', 'MaskPseudoSampler', f'{where}.train_cfg.sampler')
    _check(train['assigner'], 'type', 'HungarianAssigner', f'{where}.train_cfg.assigner')
    points = {
        'num_points': train['num_points'],
        'oversample_ratio': train['oversample_ratio'],
        'importance_ratio': train['importance_sample_ratio'],
    }
    return {
        'num_classes': num_classes,
        'in_channels': head['in_channels'],
        'num_queries': head['num_queries'],
        'pixel_decoder': _pixel_decoder(head['pixel_decoder'], channels, num_levels),
        'decoder': _decoder(head['transformer_decoder'], channels, where),
        'losses': {**losses, 'points': points},
        'matcher': _matcher(train['assigner']['match_costs']),
        'class_weight': class_weight,
        'compat': head['compat'],
        'init_cfg': head['init_cfg'],
    }


def _pixel_decoder(stock: Config, channels: int, num_levels: int) -> dict[str, Any]:
    layer = stock['encoder']['layer_cfg']
    return {
        'channels': channels,
        'num_layers': stock['encoder']['num_layers'],
        'num_levels': num_levels,
        'num_heads': layer['self_attn_cfg']['num_heads'],
        'num_points': layer['self_attn_cfg']['num_points'],
        'ffn_dim': layer['ffn_cfg']['feedforward_channels'],
        'norm_groups': stock['norm_cfg']['num_groups'],
    }


def _decoder(stock: Config, channels: int, where: str) -> dict[str, Any]:
    layer = stock['layer_cfg']
    num_heads = layer['cross_attn_cfg']['num_heads']
    own_heads = layer['self_attn_cfg']['num_heads']
    if own_heads != num_heads:
        raise ValueError(
            f'{where}.transformer_decoder.layer_cfg: the self-attention has {own_heads} heads, '
            f'the cross-attention {num_heads}; our decoder has one number for both'
        )
    return {
        'channels': channels,
        'num_layers': stock['num_layers'],
        'num_heads': num_heads,
        'ffn_dim': layer['ffn_cfg']['feedforward_channels'],
    }


def _losses(head: Config) -> tuple[dict[str, Config], Any]:
    """Return the settings of our losses, and the class weights if the class loss is ours."""
    losses: dict[str, Config] = {}
    class_weight = None
    for name, (type_name, ours) in SAME_LOSSES.items():
        stock = head[f'loss_{name}']
        if stock is None:
            continue
        same = _settings_if_ours(stock, type_name, ours)
        if same is None:
            losses[name] = _keep(stock)
            continue
        losses[name] = {'weight': same['loss_weight']}
        if name == 'cls':
            class_weight = same['class_weight']
    return losses, class_weight


def _matcher(match_costs: Any) -> dict[str, Any]:
    """Return the settings of our matcher; a cost of None takes one of the paper's three out."""
    if match_costs is None:
        return {}
    costs: dict[str, Config | None] = dict.fromkeys(SAME_COSTS)
    for index, stock in enumerate([match_costs] if isinstance(match_costs, dict) else match_costs):
        for name, (type_name, ours) in SAME_COSTS.items():
            same = _settings_if_ours(stock, type_name, ours)
            if same is not None and costs[name] is None:
                costs[name] = {'weight': same['weight']}
                break
        else:
            costs[f'stock_{index}'] = _keep(stock)
    return {'costs': costs}


def _settings_if_ours(stock: Config, type_name: str, ours: Config) -> dict[str, Any] | None:
    """Return all settings of a stock loss or cost if ours computes the same, else None."""
    given = {key: value for key, value in stock.items() if key not in ('type', '_delete_')}
    settings = {**_LOSS_DEFAULTS[type_name], **given}
    same = (
        is_stock(stock.get('type'), type_name)
        and settings.keys() == _LOSS_DEFAULTS[type_name].keys()
        and all(settings[key] == value for key, value in ours.items())
    )
    return settings if same else None


def _keep(stock: Config) -> dict[str, Any]:
    """Return the config of a loss or cost that stays mmdet's, with its scope."""
    type_name = stock['type']
    is_bare = isinstance(type_name, str) and '.' not in type_name
    return {**stock, 'type': f'mmdet.{type_name}' if is_bare else type_name}


def _things_and_stuff(head: Config) -> tuple[int, int]:
    num_classes = head['num_classes']
    things, stuff = head['num_things_classes'], head['num_stuff_classes']
    if num_classes is None:
        return 80 if things is None else things, 53 if stuff is None else stuff
    if things is None:
        things = num_classes - (stuff or 0)
    if stuff is None:
        stuff = num_classes - things
    if things + stuff != num_classes:
        raise ValueError(
            f'panoptic_head.num_classes is {num_classes}, its things and stuff are {things} and '
            f'{stuff}'
        )
    return things, stuff


def _check_fusion_head(stock: Config | None, head: Config) -> None:
    """Check that our detector does what the fusion head does, which has no weights."""
    numbers = {
        key: head.get(key, _FUSION_HEAD[key]) for key in ('num_things_classes', 'num_stuff_classes')
    }
    where = 'model.panoptic_fusion_head'
    fusion = _complete({**numbers, **(stock or {})}, _FUSION_HEAD, where)
    for key in ('type', 'loss_panoptic', *numbers):
        _check(fusion, key, numbers.get(key, _FUSION_HEAD[key]), where)
