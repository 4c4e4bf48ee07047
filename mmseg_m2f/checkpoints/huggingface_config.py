"""Build the ``config.json`` that belongs to weights under Hugging Face's names."""

import re
from collections.abc import Sequence
from typing import Any

from mmseg_m2f.checkpoints.keymap import StateDict

_ENCODER = 'model.pixel_level_module.encoder.'
_PIXEL_DECODER = 'model.pixel_level_module.decoder.'
_DECODER = 'model.transformer_module.'
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
    shapes = _Shapes({key: tuple(value.shape) for key, value in state_dict.items()})
    layer = f'{_PIXEL_DECODER}encoder.layers.0.'
    _check_decoder(shapes)
    num_queries, channels = shapes[f'{_DECODER}queries_features.weight']
    num_classes = shapes['class_predictor.weight'][0] - 1
    num_samples = shapes[f'{layer}self_attn.sampling_offsets.bias'][0] // 2
    names = [f'LABEL_{i}' for i in range(num_classes)] if classes is None else list(classes)
    if len(names) != num_classes:
        raise ValueError(f'the model has {num_classes} classes, {len(names)} names were given')
    is_resnet = shapes.count(f'{_ENCODER}encoder.stages.') > 0
    return {
        'architectures': ['Mask2FormerForUniversalSegmentation'],
        'model_type': 'mask2former',
        'backbone_config': _resnet(shapes) if is_resnet else _swin(shapes),
        'feature_size': shapes[f'{_PIXEL_DECODER}input_projections.0.0.weight'][0],
        'mask_feature_size': shapes[f'{_PIXEL_DECODER}mask_projection.weight'][0],
        'hidden_dim': channels,
        'encoder_layers': shapes.count(f'{_PIXEL_DECODER}encoder.layers.'),
        # They count the prediction before the first layer too.
        'decoder_layers': shapes.count(f'{_DECODER}decoder.layers.') + 1,
        'num_attention_heads': num_samples // (_NUM_LEVELS * _NUM_POINTS),
        'encoder_feedforward_dim': shapes[f'{layer}fc1.bias'][0],
        'dim_feedforward': shapes[f'{_DECODER}decoder.layers.0.fc1.bias'][0],
        'num_queries': num_queries,
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


class _Shapes(dict[str, tuple[int, ...]]):
    """The shapes of the weights by name."""

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise ValueError(f'the checkpoint does not hold {key}')

    def count(self, prefix: str) -> int:
        """Count the different numbers that follow ``prefix`` in the names."""
        number = re.compile(re.escape(prefix) + r'(\d+)\.')
        return len({hit[1] for key in self if (hit := number.match(key))})


def _check_decoder(shapes: _Shapes) -> None:
    for key in (f'{_PIXEL_DECODER}level_embed', f'{_DECODER}level_embed.weight'):
        if shapes[key][0] != _NUM_LEVELS:
            raise ValueError(
                f"Hugging Face's model has {_NUM_LEVELS} levels, this one {shapes[key][0]} ({key})"
            )
    for what, layers in (
        ('pixel decoder', f'{_PIXEL_DECODER}encoder.layers.'),
        ('decoder', f'{_DECODER}decoder.layers.'),
    ):
        if not shapes.count(layers):
            raise ValueError(f'the {what} has no layers to read its settings from')


def _resnet(shapes: _Shapes) -> dict[str, Any]:
    stages = [f'{_ENCODER}encoder.stages.{i}.layers.' for i in range(4)]
    is_deep = f'{stages[0]}0.layer.2.convolution.weight' in shapes
    last = f'0.layer.{2 if is_deep else 1}.convolution.weight'
    return {
        'model_type': 'resnet',
        'embedding_size': shapes[f'{_ENCODER}embedder.embedder.convolution.weight'][0],
        'hidden_sizes': [shapes[stage + last][0] for stage in stages],
        'depths': [shapes.count(stage) for stage in stages],
        'layer_type': 'bottleneck' if is_deep else 'basic',
        'out_features': ['stage1', 'stage2', 'stage3', 'stage4'],
    }


def _swin(shapes: _Shapes) -> dict[str, Any]:
    patches = shapes[f'{_ENCODER}embeddings.patch_embeddings.projection.weight']
    stages = [f'{_ENCODER}encoder.layers.{i}.blocks.' for i in range(4)]
    tables = [shapes[f'{s}0.attention.self.relative_position_bias_table'] for s in stages]
    return {
        'model_type': 'swin',
        'embed_dim': patches[0],
        'patch_size': patches[-1],
        'depths': [shapes.count(stage) for stage in stages],
        'num_heads': [heads for _, heads in tables],
        'window_size': (int(tables[0][0] ** 0.5) + 1) // 2,
        'mlp_ratio': shapes[f'{stages[0]}0.intermediate.dense.bias'][0] / patches[0],
        'drop_path_rate': 0.3,
        'out_features': ['stage1', 'stage2', 'stage3', 'stage4'],
    }
