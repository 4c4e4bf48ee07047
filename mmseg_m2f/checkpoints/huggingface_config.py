"""Build the ``config.json`` that belongs to weights under Hugging Face's names."""

import re
from collections.abc import Sequence
from typing import Any

from mmseg_m2f.checkpoints.rules import StateDict

_ENCODER = 'model.pixel_level_module.encoder.'
_PIXEL_DECODER = 'model.pixel_level_module.decoder.'
_DECODER = 'model.transformer_module.'
_OUTPUTS = ['stage1', 'stage2', 'stage3', 'stage4']
# These are fixed in their pixel decoder.
_NUM_LEVELS, _NUM_POINTS = 3, 4


def huggingface_config(
    state_dict: StateDict, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Read the settings of ``Mask2FormerConfig`` off the shapes of the weights.

    No shape tells the number of attention heads in the decoder. It is taken to be that of the pixel
    decoder, as in every published model.

    Args:
        state_dict: weights under Hugging Face's names, as ``to_huggingface`` returns them.
        classes: the names of the classes in order; ``LABEL_0`` and so on by default.

    Raises:
        ValueError: Hugging Face's model cannot have these shapes, or ``classes`` has another number
            of names than the model has classes.
    """
    _check_decoder(state_dict)
    num_queries, channels = _shape(state_dict, f'{_DECODER}queries_features.weight')
    num_classes = _shape(state_dict, 'class_predictor.weight')[0] - 1
    offsets = _shape(
        state_dict, f'{_PIXEL_DECODER}encoder.layers.0.self_attn.sampling_offsets.bias'
    )
    names = [f'LABEL_{i}' for i in range(num_classes)] if classes is None else list(classes)
    if len(names) != num_classes:
        raise ValueError(f'the model has {num_classes} classes, {len(names)} names were given')
    return {
        'architectures': ['Mask2FormerForUniversalSegmentation'],
        'model_type': 'mask2former',
        'backbone_config': _backbone(state_dict),
        'feature_size': _shape(state_dict, f'{_PIXEL_DECODER}input_projections.0.0.weight')[0],
        'mask_feature_size': _shape(state_dict, f'{_PIXEL_DECODER}mask_projection.weight')[0],
        'hidden_dim': channels,
        'encoder_layers': _count(state_dict, f'{_PIXEL_DECODER}encoder.layers.'),
        # They count the prediction before the first layer too.
        'decoder_layers': _count(state_dict, f'{_DECODER}decoder.layers.') + 1,
        'num_attention_heads': offsets[0] // (_NUM_LEVELS * _NUM_POINTS * 2),
        'encoder_feedforward_dim': _shape(state_dict, f'{_PIXEL_DECODER}encoder.layers.0.fc1.bias')[
            0
        ],
        'dim_feedforward': _shape(state_dict, f'{_DECODER}decoder.layers.0.fc1.bias')[0],
        'num_queries': num_queries,
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


def _check_decoder(state_dict: StateDict) -> None:
    for key in (f'{_PIXEL_DECODER}level_embed', f'{_DECODER}level_embed.weight'):
        levels = _shape(state_dict, key)[0]
        if levels != _NUM_LEVELS:
            raise ValueError(
                f"Hugging Face's model has {_NUM_LEVELS} levels, this one {levels} ({key})"
            )
    for prefix, what in (
        (f'{_PIXEL_DECODER}encoder.', 'pixel decoder'),
        (f'{_DECODER}decoder.', 'decoder'),
    ):
        if not _count(state_dict, f'{prefix}layers.'):
            raise ValueError(f'the {what} has no layers to read its settings from')


def _backbone(state_dict: StateDict) -> dict[str, Any]:
    stages = f'{_ENCODER}encoder.stages.'
    if any(key.startswith(stages) for key in state_dict):
        return _resnet(state_dict, stages)
    return _swin(state_dict, f'{_ENCODER}encoder.layers.')


def _resnet(state_dict: StateDict, stages: str) -> dict[str, Any]:
    is_deep = f'{stages}0.layers.0.layer.2.convolution.weight' in state_dict
    last = f'layers.0.layer.{2 if is_deep else 1}.convolution.weight'
    return {
        'model_type': 'resnet',
        'embedding_size': _shape(state_dict, f'{_ENCODER}embedder.embedder.convolution.weight')[0],
        'hidden_sizes': [_shape(state_dict, f'{stages}{i}.{last}')[0] for i in range(4)],
        'depths': [_count(state_dict, f'{stages}{i}.layers.') for i in range(4)],
        'layer_type': 'bottleneck' if is_deep else 'basic',
        'out_features': _OUTPUTS,
    }


def _swin(state_dict: StateDict, layers: str) -> dict[str, Any]:
    patches = _shape(state_dict, f'{_ENCODER}embeddings.patch_embeddings.projection.weight')
    table = 'blocks.0.attention.self.relative_position_bias_table'
    tables = [_shape(state_dict, f'{layers}{i}.{table}') for i in range(4)]
    hidden = _shape(state_dict, f'{layers}0.blocks.0.intermediate.dense.bias')[0]
    return {
        'model_type': 'swin',
        'embed_dim': patches[0],
        'patch_size': patches[-1],
        'depths': [_count(state_dict, f'{layers}{i}.blocks.') for i in range(4)],
        'num_heads': [heads for _, heads in tables],
        'window_size': (int(tables[0][0] ** 0.5) + 1) // 2,
        'mlp_ratio': hidden / patches[0],
        'drop_path_rate': 0.3,
        'out_features': _OUTPUTS,
    }


def _shape(state_dict: StateDict, key: str) -> tuple[int, ...]:
    if key not in state_dict:
        raise ValueError(f'the checkpoint does not hold {key}')
    return tuple(state_dict[key].shape)


def _count(state_dict: StateDict, prefix: str) -> int:
    """Count the different numbers that follow ``prefix`` in the names."""
    number = re.compile(re.escape(prefix) + r'(\d+)\.')
    return len({hit.group(1) for key in state_dict if (hit := number.match(key))})
