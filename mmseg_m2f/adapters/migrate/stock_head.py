"""Read a built Mask2Former head of mmseg or mmdet, and build ours with the same settings.

Settings are read off the modules, not off the config that they were built from: a user may have
changed them since. A ``ValueError`` names what our parts cannot follow.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmseg_m2f.adapters.models.decode_head import Mask2FormerHead
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.models.mmdet_losses import SAME_COSTS, SAME_LOSSES
from mmseg_m2f.adapters.models.universal_head import Mask2FormerUniversalHead
from mmseg_m2f.checkpoints import to_ours

# The heads that can be read, and their names in a model.
NAMES = {'mmseg.Mask2FormerHead': 'decode_head', 'mmdet.Mask2FormerHead': 'panoptic_head'}
_CONVOLUTION = {'stride': (1, 1), 'dilation': (1, 1), 'groups': 1, 'padding_mode': 'zeros'}
_POSITION = {'temperature': 10000, 'normalize': True, 'scale': math.tau, 'eps': 1e-6, 'offset': 0}
# The modules that a network may consist of, each with the settings that our parts have.
# A subclass may compute anything, so that only the classes themselves are listed.
_KNOWN: dict[str, dict[str, Any]] = {
    'mmcv.Conv2d': _CONVOLUTION,
    'mmcv.ConvModule': {},
    'mmcv.Dropout': {'p': 0},
    'mmcv.FFN': {'num_fcs': 2, 'add_identity': True},
    'mmcv.Linear': {},
    'mmcv.MultiScaleDeformableAttention': {'batch_first': True},
    'mmcv.MultiheadAttention': {'batch_first': True},
    'mmdet.DeformableDetrTransformerEncoderLayer': {},
    'mmdet.MSDeformAttnPixelDecoder': {},
    'mmdet.Mask2FormerTransformerDecoder': {},
    'mmdet.Mask2FormerTransformerDecoderLayer': {},
    'mmdet.Mask2FormerTransformerEncoder': {},
    'mmdet.SinePositionalEncoding': _POSITION,
    'mmengine.ModuleList': {},
    'mmengine.Sequential': {},
    'torch.Conv2d': _CONVOLUTION,
    'torch.Dropout': {'p': 0},
    'torch.Embedding': {'max_norm': None, 'sparse': False},
    'torch.GroupNorm': {'eps': 1e-5},
    'torch.Identity': {},
    'torch.LayerNorm': {'eps': 1e-5},
    'torch.Linear': {},
    'torch.ModuleList': {},
    'torch.MultiheadAttention': {'dropout': 0, 'add_zero_attn': False},
    'torch.NonDynamicallyQuantizableLinear': {},
    'torch.ReLU': {},
    'torch.Sequential': {},
}


def kind_of(part: object) -> str:
    """Return ``package.Class`` of an object."""
    return f'{type(part).__module__.partition(".")[0]}.{type(part).__name__}'


def network_modules(head: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a stock head but its losses, by their paths in the head."""
    named = head.named_modules()
    return {path: module for path, module in named if path and not path.startswith('loss_')}


def build_ours(head: Any, **settings: Any) -> MaskHead:
    """Build our head with new weights, the sizes of a stock head and further ``settings``.

    Raises:
        ValueError: our parts compute something else than a module of the stock head.
    """
    _check_network(head)
    settings |= _sizes(head)
    if kind_of(head) == 'mmseg.Mask2FormerHead':
        names = ('num_classes', 'align_corners', 'ignore_index')
        return Mask2FormerHead(**settings, **{name: getattr(head, name) for name in names})
    num_things, num_stuff = head.num_things_classes, head.num_stuff_classes
    things = {'num_classes': num_things + num_stuff, 'thing_ids': list(range(num_things))}
    return Mask2FormerUniversalHead(**settings, **things)


def pair_parameters(ours: nn.Module, head: nn.Module) -> dict[str, str]:
    """Return for the name of each of our parameters that in the stock head.

    Raises:
        ValueError: the parameters are not one to one, or a shape differs.
    """
    name, layout = NAMES[kind_of(head)], kind_of(head).partition('.')[0]
    stock = {path: p for path, p in head.named_parameters() if not path.startswith('loss_')}
    paths = {id(parameter): path for path, parameter in stock.items()}
    renamed = to_ours({f'{name}.{path}': p for path, p in stock.items()}, layout, name)
    theirs = {key.removeprefix(f'{name}.'): parameter for key, parameter in renamed.items()}
    mine = dict(ours.named_parameters())
    sides = {'the stock head': theirs.keys() - mine.keys(), 'ours': mine.keys() - theirs.keys()}
    if mine.keys() != theirs.keys():
        found = [f'only {side} has {sorted(names)}' for side, names in sides.items() if names]
        raise ValueError('; '.join(found))
    for key, parameter in theirs.items():
        if parameter.shape != mine[key].shape:
            raise ValueError(
                f'{paths[id(parameter)]} of the head has the shape {tuple(parameter.shape)}, our '
                f'parts want {tuple(mine[key].shape)} there'
            )
    return {key: paths[id(parameter)] for key, parameter in theirs.items()}


def read_losses(head: Any, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of our losses and matcher that compute what those of a stock head do.

    Args:
        head: the stock head.
        config: from which ``head`` was built. A loss or cost that ours do not compute keeps its
            config, with mmdet's class; without ``config`` it is an error.

    Raises:
        ValueError: an assigner, sampler, loss or cost that ours do not compute.
    """
    losses: dict[str, Any] = {}
    for name, same in SAME_LOSSES.items():
        key = f'loss_{name}'
        loss = getattr(head, key)
        if _is_same(loss, same):
            losses[name] = {'weight': loss.loss_weight}
        else:
            losses[name] = _keep(loss, key, config and config[key])
    settings: dict[str, Any] = {'losses': losses}
    if 'weight' in losses['cls']:
        settings['class_weight'] = head.loss_cls.class_weight
    if hasattr(head, 'assigner'):
        losses['points'] = {
            'num_points': head.num_points,
            'oversample_ratio': head.oversample_ratio,
            'importance_ratio': head.importance_sample_ratio,
        }
        settings['matcher'] = {'costs': _read_costs(head, config)}
    elif config is None:
        raise ValueError('the model was built without train_cfg')
    return settings


def read_results(test_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Translate mmdet's ``test_cfg`` into settings of `core.PostprocessConfig`."""
    return {
        'panoptic_on': test_cfg.get('panoptic_on', True),
        'semantic_on': test_cfg.get('semantic_on', False),
        'instance_on': test_cfg.get('instance_on', False),
        'max_per_image': test_cfg.get('max_per_image', 100),
        'object_mask_thr': test_cfg.get('object_mask_thr', 0.8),
        'overlap_thr': test_cfg.get('iou_thr', 0.8),
    }


def _check_network(head: Any) -> None:
    """Raise ``ValueError`` for a module or a setting that our parts do not have."""
    of_head = {
        'mmdet.MSDeformAttnPixelDecoder': {'num_outs': head.level_embed.num_embeddings},
        'mmdet.SinePositionalEncoding': {'num_feats': head.cls_embed.in_features // 2},
    }
    for path, module in network_modules(head).items():
        kind = kind_of(module)
        if kind not in _KNOWN:
            raise ValueError(f'{path} of the head is {kind}, our parts have none')
        settings = {**_KNOWN[kind], **of_head.get(kind, {})}
        if isinstance(module, nn.Conv2d):
            settings['padding'] = tuple(side // 2 for side in module.kernel_size)
        if path.startswith('pixel_decoder.output_convs') and kind == 'mmcv.ConvModule':
            settings['with_activation'] = True
        for key, ours in settings.items():
            if (value := getattr(module, key)) != ours:
                raise ValueError(
                    f'{path} of the head ({kind}) has {key} = {value}, our parts have {ours} only'
                )


def _sizes(head: Any) -> dict[str, Any]:
    channels, pixel_decoder = head.cls_embed.in_features, head.pixel_decoder
    encoder, decoder = pixel_decoder.encoder.layers, head.transformer_decoder.layers
    finest_first = [*pixel_decoder.lateral_convs, *reversed(pixel_decoder.input_convs)]
    sampling = [layer.self_attn for layer in encoder]
    norms = [module for module in pixel_decoder.modules() if isinstance(module, nn.GroupNorm)]
    attentions = [part for layer in decoder for part in (layer.self_attn, layer.cross_attn)]
    return {
        'in_channels': [block.conv.in_channels for block in finest_first],
        'num_queries': head.query_feat.num_embeddings,
        'pixel_decoder': {
            'channels': channels,
            'num_layers': len(encoder),
            'num_levels': head.level_embed.num_embeddings,
            'num_heads': _one_for_all('num_heads', sampling),
            'num_points': _one_for_all('num_points', sampling),
            'ffn_dim': _one_for_all('feedforward_channels', [layer.ffn for layer in encoder]),
            'norm_groups': _one_for_all('num_groups', norms),
        },
        'decoder': {
            'channels': channels,
            'num_layers': len(decoder),
            'num_heads': _one_for_all('num_heads', attentions),
            'ffn_dim': _one_for_all('feedforward_channels', [layer.ffn for layer in decoder]),
        },
    }


def _one_for_all(name: str, modules: Iterable[Any]) -> int:
    found = sorted({getattr(module, name) for module in modules})
    if len(found) != 1:
        raise ValueError(f'{name} is {found}, our parts have one for all')
    return found[0]


def _read_costs(head: Any, config: Mapping[str, Any] | None) -> dict[str, Any]:
    for name, kind in (('sampler', 'MaskPseudoSampler'), ('assigner', 'HungarianAssigner')):
        if kind_of(getattr(head, name)) != f'mmdet.{kind}':
            raise ValueError(f'the {name} is {kind_of(getattr(head, name))}, ours is {kind}')
    configs: Any = config and config['train_cfg']['assigner']['match_costs']
    configs = [configs] if isinstance(configs, dict) else configs
    # None takes a cost out, which the stock matcher may lack.
    costs: dict[str, Any] = dict.fromkeys(SAME_COSTS)
    for index, cost in enumerate(head.assigner.match_costs):
        names = [name for name, same in SAME_COSTS.items() if _is_same(cost, same)]
        if names and costs[names[0]] is None:
            costs[names[0]] = {'weight': cost.weight}
        else:
            costs[f'stock_{index}'] = _keep(cost, 'a match cost', configs and configs[index])
    return costs


def _is_same(part: object, ours: tuple[str, Mapping[str, Any]]) -> bool:
    kind, settings = ours
    return kind_of(part) == f'mmdet.{kind}' and all(
        getattr(part, key) == value for key, value in settings.items()
    )


def _keep(part: object, role: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the config of a loss or cost that stays mmdet's, with its scope."""
    if config is None:
        raise ValueError(f'ours have no such {kind_of(part)} as {role}')
    name = config['type']
    is_bare = isinstance(name, str) and '.' not in name
    return {**config, 'type': f'mmdet.{name}' if is_bare else name}
