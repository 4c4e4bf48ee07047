"""The settings of MMDetection's and MMSegmentation's own Mask2Former, said in ours.

Plain dicts to plain dicts. Every key is read or refused: a setting that our parts cannot follow
raises and says so, none is dropped in silence.
"""

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

Config = Mapping[str, Any]

# What the stock classes do where a config is silent.
_LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
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
}
_COST_DEFAULTS: dict[str, dict[str, Any]] = {
    'ClassificationCost': {'weight': 1},
    'CrossEntropyLossCost': {'use_sigmoid': True, 'weight': 1},
    'DiceCost': {'pred_act': False, 'eps': 1e-3, 'naive_dice': True, 'weight': 1},
}
_PLAIN = {'use_mask': False, 'reduction': 'mean', 'ignore_index': None, 'avg_non_ignore': False}
# Type and settings, besides the weights, of the losses and costs that ours equal.
_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    'cls': ('CrossEntropyLoss', {**_PLAIN, 'use_sigmoid': False}),
    'mask': ('CrossEntropyLoss', {**_PLAIN, 'use_sigmoid': True, 'class_weight': None}),
    'dice': (
        'DiceLoss',
        {
            'use_sigmoid': True,
            'activate': True,
            'reduction': 'mean',
            'naive_dice': True,
            'eps': 1.0,
        },
    ),
}
_COSTS: dict[str, tuple[str, dict[str, Any]]] = {
    'cls': ('ClassificationCost', {}),
    'mask': ('CrossEntropyLossCost', {'use_sigmoid': True}),
    'dice': ('DiceCost', {'pred_act': True, 'eps': 1.0, 'naive_dice': True}),
}
_NO_DROPOUT: tuple[dict[str, Any] | None, ...] = (None, {}, {'type': 'Dropout', 'drop_prob': 0.0})


class Section:
    """One dict of a stock config; used in a ``with``, at whose end all keys must be known.

    Raises:
        ValueError: a key nobody asked for, with those somebody did.
    """

    def __init__(self, config: Config | None, where: str) -> None:
        self.where = where
        self._known: list[str] = []
        # MMEngine leaves the mark in place where the base config had nothing to delete.
        self._given = {k: v for k, v in (config or {}).items() if k != '_delete_'}

    def __enter__(self) -> 'Section':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is None and self._given:
            raise ValueError(
                f'{self.where} does not know {sorted(self._given)}; known keys: '
                f'{sorted(self._known)}'
            )

    def take(self, key: str, default: Any = None) -> Any:
        """The value, or what the stock class has by default."""
        self._known.append(key)
        return self._given.pop(key, default)

    def ignore(self, *keys: str) -> None:
        """Keys without a numerical effect, or that the stock class does not read either."""
        for key in keys:
            self.take(key)

    def expect(self, key: str, *allowed: Any, default: Any = ...) -> None:
        """Refuse any other value than ``allowed``, whose first is the default unless given."""
        value = self.take(key, allowed[0] if default is ... else default)
        value = list(value) if isinstance(value, tuple) else value
        if value not in allowed:
            raise ValueError(
                f'{self.where}.{key} is {value!r}, our parts have {allowed[0]!r} only. Set it so, '
                'or keep the stock head: leave mmseg_m2f.dropin out.'
            )

    def section(self, key: str, *, may_be_none: bool = False) -> 'Section':
        """The dict below ``key``; a None of the user's says that a layer is left out."""
        if key in self._given and self._given[key] is None and not may_be_none:
            raise ValueError(f'{self.where}.{key} is None, our parts have that layer always')
        return Section(self.take(key), f'{self.where}.{key}')


def semantic_head(stock: Config) -> dict[str, Any]:
    """Arguments of mmseg's ``Mask2FormerHead`` as those of ours."""
    with Section(stock, 'decode_head') as head:
        num_classes = head.take('num_classes')
        # mmseg hands these on to mmdet's head, which builds a classifier nobody uses.
        things, stuff = head.take('num_things_classes', 0), head.take('num_stuff_classes', 0)
        ours = _head(head, things + stuff if num_classes is None else num_classes)
        ours['align_corners'] = head.take('align_corners', False)
        ours['ignore_index'] = head.take('ignore_index', 255)
    return ours


def universal_head(stock: Config) -> dict[str, Any]:
    """Arguments of mmdet's ``Mask2FormerHead`` as those of ours: things come first."""
    with Section(stock, 'panoptic_head') as head:
        num_things, num_stuff = _things_and_stuff(head)
        ours = _head(head, num_things + num_stuff)
    return {**ours, 'thing_ids': list(range(num_things))}


def detector(stock: Config) -> dict[str, Any]:
    """Arguments of mmdet's ``Mask2Former`` as those of ours.

    A head of ours, named as such, is left as it is.
    """
    with Section(stock, 'model') as model:
        ours = {
            key: model.take(key) for key in ('backbone', 'neck', 'data_preprocessor', 'init_cfg')
        }
        head = dict(model.take('panoptic_head', {}))
        ours['test_cfg'], compat = _test_cfg(model)
        train_cfg, fusion = model.take('train_cfg'), model.take('panoptic_fusion_head')
        if is_stock(head.get('type'), 'Mask2FormerHead'):
            _check_fusion_head(fusion, head)
            head['train_cfg'] = train_cfg or head.get('train_cfg')
            head['compat'] = {**compat, **(head.get('compat') or {})}
            head.pop('type')
            head = {'type': 'mmseg_m2f.Mask2FormerUniversalHead', **universal_head(head)}
    return {**ours, 'panoptic_head': head}


def is_stock(type_name: object, name: str) -> bool:
    """True for the bare name, or that in the scope of mmdet or mmseg."""
    return type_name in (name, f'mmdet.{name}', f'mmseg.{name}')


def _things_and_stuff(head: Section) -> tuple[int, int]:
    num_classes = head.take('num_classes')
    things, stuff = head.take('num_things_classes'), head.take('num_stuff_classes')
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


def _head(head: Section, num_classes: int) -> dict[str, Any]:
    """What both heads share."""
    channels, levels = head.take('feat_channels', 256), head.take('num_transformer_feat_level', 3)
    head.expect('out_channels', channels)
    head.expect('enforce_decoder_input_project', False)
    # The head's own are read by no stock class.
    head.ignore('strides', 'test_cfg')
    _check_position(head.section('positional_encoding'), channels)
    losses, class_weight = _losses(head)
    in_channels = head.take('in_channels')
    if in_channels is None:
        raise ValueError(f'{head.where}.in_channels is missing')
    points, matcher = _train_cfg(head.section('train_cfg', may_be_none=True))
    return {
        'num_classes': num_classes,
        'in_channels': in_channels,
        'num_queries': head.take('num_queries', 100),
        'pixel_decoder': _pixel_decoder(head.section('pixel_decoder'), channels, levels),
        'decoder': _decoder(head.section('transformer_decoder'), channels),
        'losses': {**losses, 'points': points},
        'matcher': matcher,
        'class_weight': class_weight,
        'compat': head.take('compat'),
        'init_cfg': head.take('init_cfg'),
    }


def _pixel_decoder(decoder: Section, channels: int, levels: int) -> dict[str, Any]:
    with decoder:
        decoder.expect('type', 'MSDeformAttnPixelDecoder', 'mmdet.MSDeformAttnPixelDecoder')
        decoder.ignore('in_channels', 'feat_channels', 'out_channels')  # the head's are taken
        decoder.expect('strides', [4, 8, 16, 32])
        decoder.expect('num_outs', levels, default=3)
        decoder.expect('init_cfg', None)
        _check_relu(decoder)
        _check_position(decoder.section('positional_encoding'), channels)
        with decoder.section('norm_cfg') as norm:
            norm.expect('type', 'GN')
            norm.expect('requires_grad', True)
            num_groups = norm.take('num_groups', 32)
        with decoder.section('encoder') as encoder:
            num_layers = encoder.take('num_layers', 6)
            encoder.expect('num_cp', -1)
            encoder.expect('init_cfg', None)
            with encoder.section('layer_cfg') as layer:
                attention = _deformable_attention(layer.section('self_attn_cfg'), channels, levels)
                ffn_dim = _ffn(layer.section('ffn_cfg'), channels)
                _check_layer_norm(layer, 'norm_cfg')
                layer.expect('init_cfg', None)
    sizes = {'channels': channels, 'num_layers': num_layers, 'num_levels': levels}
    return {**sizes, **attention, 'ffn_dim': ffn_dim, 'norm_groups': num_groups}


def _deformable_attention(attention: Section, channels: int, levels: int) -> dict[str, int]:
    with attention:
        attention.expect('embed_dims', channels, default=256)
        attention.expect('num_levels', levels, default=4)
        attention.expect('dropout', 0.0, default=0.1)
        attention.expect('batch_first', True)
        attention.expect('value_proj_ratio', 1.0)
        # norm_cfg is read by no stock class; the step splits the batch for the kernel.
        attention.ignore('im2col_step', 'norm_cfg')
        attention.expect('init_cfg', None)
        return {
            'num_heads': attention.take('num_heads', 8),
            'num_points': attention.take('num_points', 4),
        }


def _decoder(decoder: Section, channels: int) -> dict[str, Any]:
    with decoder:
        decoder.ignore('return_intermediate')  # all predictions are supervised either way
        decoder.expect('init_cfg', None)
        _check_layer_norm(decoder, 'post_norm_cfg')
        num_layers = decoder.take('num_layers', 9)
        with decoder.section('layer_cfg') as layer:
            num_heads = _attention(layer.section('cross_attn_cfg'), channels)
            own_heads = _attention(layer.section('self_attn_cfg'), channels)
            if own_heads != num_heads:
                raise ValueError(
                    f'{layer.where}: the self-attention has {own_heads} heads, the '
                    f'cross-attention {num_heads}; our decoder has one number for both'
                )
            ffn_dim = _ffn(layer.section('ffn_cfg'), channels)
            _check_layer_norm(layer, 'norm_cfg')
            layer.expect('init_cfg', None)
    sizes = {'channels': channels, 'num_layers': num_layers, 'num_heads': num_heads}
    return {**sizes, 'ffn_dim': ffn_dim}


def _attention(attention: Section, channels: int) -> int:
    """Number of heads; dropout in either spelling must be 0."""
    with attention:
        attention.expect('embed_dims', channels, default=256)
        for key in ('dropout', 'attn_drop', 'proj_drop'):
            attention.expect(key, 0.0)
        attention.expect('dropout_layer', *_NO_DROPOUT)
        attention.expect('batch_first', True)
        attention.expect('init_cfg', None)
        return int(attention.take('num_heads', 8))


def _ffn(ffn: Section, channels: int) -> int:
    """The hidden width."""
    with ffn:
        ffn.expect('embed_dims', channels, default=256)
        ffn.expect('num_fcs', 2)
        ffn.expect('ffn_drop', 0.0)
        ffn.expect('dropout_layer', *_NO_DROPOUT)
        ffn.expect('add_identity', True)
        ffn.expect('layer_scale_init_value', 0.0)
        ffn.expect('init_cfg', None)
        _check_relu(ffn)
        return int(ffn.take('feedforward_channels', 1024))


def _check_relu(section: Section) -> None:
    with section.section('act_cfg') as activation:
        activation.expect('type', 'ReLU')
        activation.ignore('inplace')


def _check_layer_norm(section: Section, key: str) -> None:
    with section.section(key) as norm:
        norm.expect('type', 'LN')
        norm.expect('eps', 1e-5)
        norm.expect('requires_grad', True)


def _check_position(position: Section, channels: int) -> None:
    with position:
        position.expect('num_feats', channels // 2, default=128)
        # The heads' own default; SinePositionalEncoding alone has False.
        position.expect('normalize', True)
        position.expect('temperature', 10000)
        position.expect('scale', 2 * math.pi)
        position.expect('eps', 1e-6)
        position.expect('offset', 0.0)
        position.expect('init_cfg', None)


def _losses(head: Section) -> tuple[dict[str, Config], Any]:
    """Settings of our losses, and the class weights if the class loss is ours."""
    ours: dict[str, Config] = {}
    class_weight = None
    for name, (type_name, settings) in _LOSSES.items():
        stock = head.take(f'loss_{name}')
        if stock is None:
            continue
        full = _completed(stock, type_name, _LOSS_DEFAULTS)
        if full is None or not _agree(full, settings):
            ours[name] = _foreign(stock)
            continue
        ours[name] = {'weight': full['loss_weight']}
        if name == 'cls':
            class_weight = full['class_weight']
    return ours, class_weight


def _train_cfg(train: Section) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of our point sampler and of our matcher."""
    with train:
        points = {
            'num_points': train.take('num_points', 12544),
            'oversample_ratio': train.take('oversample_ratio', 3.0),
            'importance_ratio': train.take('importance_sample_ratio', 0.75),
        }
        with train.section('sampler') as sampler:
            sampler.expect('type', 'MaskPseudoSampler', 'mmdet.MaskPseudoSampler')
        with train.section('assigner') as assigner:
            assigner.expect('type', 'HungarianAssigner', 'mmdet.HungarianAssigner')
            match_costs = assigner.take('match_costs')
    return points, {} if match_costs is None else {'costs': _costs(match_costs)}


def _costs(match_costs: Any) -> dict[str, Config | None]:
    """Our costs by name; None takes one of the paper's three out."""
    ours: dict[str, Config | None] = dict.fromkeys(_COSTS)
    for index, stock in enumerate([match_costs] if isinstance(match_costs, dict) else match_costs):
        for name, (type_name, settings) in _COSTS.items():
            full = _completed(stock, type_name, _COST_DEFAULTS)
            if full is not None and _agree(full, settings) and ours[name] is None:
                ours[name] = {'weight': full['weight']}
                break
        else:
            ours[f'stock_{index}'] = _foreign(stock)
    return ours


def _completed(
    stock: Config, type_name: str, defaults: Mapping[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """All settings of a loss or cost of this type; None for another one, or with other keys."""
    given = {key: value for key, value in stock.items() if key not in ('type', '_delete_')}
    if not is_stock(stock.get('type'), type_name) or set(given) - set(defaults[type_name]):
        return None
    return {**defaults[type_name], **given}


def _agree(full: Config, settings: Config) -> bool:
    return all(full[key] == value for key, value in settings.items())


def _foreign(stock: Config) -> dict[str, Any]:
    """A loss or cost that stays mmdet's, whichever scope the config is of."""
    type_name = stock['type']
    is_bare = isinstance(type_name, str) and '.' not in type_name
    return {**stock, 'type': f'mmdet.{type_name}' if is_bare else type_name}


def _test_cfg(model: Section) -> tuple[dict[str, Any], dict[str, bool]]:
    """Our ``test_cfg`` and the switch of ``compat`` that stands there in a stock config."""
    with model.section('test_cfg', may_be_none=True) as test:
        ours = {
            'panoptic_on': test.take('panoptic_on', True),
            'semantic_on': test.take('semantic_on', False),
            'instance_on': test.take('instance_on', False),
            'max_per_image': test.take('max_per_image', 100),
            'object_mask_thr': test.take('object_mask_thr', 0.8),
            'overlap_thr': test.take('overlap_thr', test.take('iou_thr', 0.8)),
            'score_thr': test.take('score_thr', 0.0),
            'non_overlap': test.take('non_overlap', False),
        }
        compat = {'panoptic_mask_intersection': test.take('filter_low_score', False)}
    return ours, compat


def _check_fusion_head(stock: Config | None, head: Config) -> None:
    """The fusion head has no weights; its work is that of our detector."""
    with Section(stock, 'model.panoptic_fusion_head') as fusion:
        fusion.expect('type', 'MaskFormerFusionHead', 'mmdet.MaskFormerFusionHead')
        fusion.ignore('test_cfg', 'init_cfg')  # the detector's is taken
        fusion.expect('loss_panoptic', None)
        for key, default in (('num_things_classes', 80), ('num_stuff_classes', 53)):
            fusion.expect(key, head.get(key, default), default=head.get(key, default))
