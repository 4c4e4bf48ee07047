"""Names and shapes of published files, written out from the code they come from.

Nothing here is made with the package under test: these lists are what it has to fit. All sizes are
those of the paper's models but for the numbers of classes and queries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]

NUM_CLASSES, NUM_QUERIES = 7, 12
CHANNELS, ENCODER_FFN, DECODER_FFN = 256, 1024, 2048
HEADS, LEVELS, POINTS = 8, 3, 4
NUM_ENCODER_LAYERS, NUM_DECODER_LAYERS = 6, 9
R50_DEPTHS, SWIN_T_DEPTHS = (3, 4, 6, 3), (2, 2, 6, 2)
R50_CHANNELS, SWIN_T_CHANNELS = (256, 512, 1024, 2048), (96, 192, 384, 768)
SWIN_T_HEADS, WINDOW = (3, 6, 12, 24), 7
BACKBONES = ('r50', 'swin-t')


def detectron2(backbone: str) -> Shapes:
    """An official model of this backbone, as its file has it."""
    channels = {'r50': R50_CHANNELS, 'swin-t': SWIN_T_CHANNELS}[backbone]
    shapes = detectron2_r50() if backbone == 'r50' else official_swin('backbone.')
    if backbone == 'swin-t':
        for stage, width in enumerate(channels):
            shapes |= affine(f'backbone.norm{stage}', width)
    shapes |= detectron2_pixel_decoder('sem_seg_head.pixel_decoder.', channels)
    shapes |= detectron2_decoder('sem_seg_head.predictor.')
    return shapes | {'criterion.empty_weight': (NUM_CLASSES + 1,)}


def affine(name: str, *shape: int) -> Shapes:
    """``weight`` and ``bias`` of a layer."""
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def batch_norm(name: str, channels: int) -> Shapes:
    leaves = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{name}.{leaf}': (channels,) for leaf in leaves}


def _bottlenecks() -> Iterator[tuple[int, int, str, tuple[int, ...]]]:
    """(stage, block, convolution, shape) of a ResNet-50 behind its stem."""
    before = 64
    for stage, (depth, after) in enumerate(zip(R50_DEPTHS, R50_CHANNELS, strict=True)):
        inner = after // 4
        for block in range(depth):
            yield stage, block, 'conv1', (inner, before, 1, 1)
            yield stage, block, 'conv2', (inner, inner, 3, 3)
            yield stage, block, 'conv3', (after, inner, 1, 1)
            if block == 0:
                yield stage, block, 'shortcut', (after, before, 1, 1)
            before = after


def detectron2_r50() -> Shapes:
    shapes: Shapes = {'backbone.stem.conv1.weight': (64, 3, 7, 7)}
    shapes |= batch_norm('backbone.stem.conv1.norm', 64)
    for stage, block, name, shape in _bottlenecks():
        convolution = f'backbone.res{stage + 2}.{block}.{name}'
        shapes |= {f'{convolution}.weight': shape}
        shapes |= batch_norm(f'{convolution}.norm', shape[0])
    return shapes


def torchvision_r50() -> Shapes:
    """The classifier, as torchvision and timm have it."""
    norms = {'conv1': 'bn1', 'conv2': 'bn2', 'conv3': 'bn3', 'shortcut': 'downsample.1'}
    shapes: Shapes = {'conv1.weight': (64, 3, 7, 7), **batch_norm('bn1', 64)}
    for stage, block, name, shape in _bottlenecks():
        module = f'layer{stage + 1}.{block}.'
        convolution = 'downsample.0' if name == 'shortcut' else name
        shapes |= {f'{module}{convolution}.weight': shape}
        shapes |= batch_norm(module + norms[name], shape[0])
    return shapes | affine('fc', 1000, 2048)


def official_swin(prefix: str) -> Shapes:
    """A Swin-T without what follows its stages; patch merging ends a stage."""
    shapes = affine(f'{prefix}patch_embed.proj', 96, 3, 4, 4)
    shapes |= affine(f'{prefix}patch_embed.norm', 96)
    for stage, (depth, width, heads) in enumerate(
        zip(SWIN_T_DEPTHS, SWIN_T_CHANNELS, SWIN_T_HEADS, strict=True)
    ):
        for index in range(depth):
            block = f'{prefix}layers.{stage}.blocks.{index}.'
            shapes |= affine(f'{block}norm1', width)
            shapes |= affine(f'{block}attn.qkv', 3 * width, width)
            shapes |= affine(f'{block}attn.proj', width, width)
            shapes[f'{block}attn.relative_position_bias_table'] = ((2 * WINDOW - 1) ** 2, heads)
            shapes[f'{block}attn.relative_position_index'] = (WINDOW**2, WINDOW**2)
            shapes |= affine(f'{block}norm2', width)
            shapes |= affine(f'{block}mlp.fc1', 4 * width, width)
            shapes |= affine(f'{block}mlp.fc2', width, 4 * width)
        if stage < 3:
            merging = f'{prefix}layers.{stage}.downsample.'
            shapes[f'{merging}reduction.weight'] = (2 * width, 4 * width)
            shapes |= affine(f'{merging}norm', 4 * width)
    return shapes


def microsoft_swin() -> Shapes:
    """The classifier; every second block has the mask of its shifted windows."""
    shapes = official_swin('') | affine('norm', 768) | affine('head', 1000, 768)
    return shapes | {
        f'layers.{stage}.blocks.{index}.attn_mask': (64 // 4**stage, WINDOW**2, WINDOW**2)
        for stage, depth in enumerate(SWIN_T_DEPTHS[:3])
        for index in range(1, depth, 2)
    }


def timm_swin() -> Shapes:
    """timm's classifier since 0.8: patch merging begins a stage, no buffers."""
    shapes: Shapes = {}
    for name, shape in official_swin('').items():
        if name.endswith('relative_position_index'):
            continue
        for stage in (2, 1, 0):
            name = name.replace(f'layers.{stage}.downsample', f'layers.{stage + 1}.downsample')
        shapes[name] = shape
    return shapes | affine('norm', 768) | affine('head.fc', 1000, 768)


def detectron2_pixel_decoder(prefix: str, in_channels: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {f'{prefix}transformer.level_embed': (LEVELS, CHANNELS)}
    for level, width in enumerate(reversed(in_channels[1:])):
        shapes |= affine(f'{prefix}input_proj.{level}.0', CHANNELS, width, 1, 1)
        shapes |= affine(f'{prefix}input_proj.{level}.1', CHANNELS)
    samples = HEADS * LEVELS * POINTS
    for index in range(NUM_ENCODER_LAYERS):
        layer = f'{prefix}transformer.encoder.layers.{index}.'
        shapes |= affine(f'{layer}self_attn.sampling_offsets', 2 * samples, CHANNELS)
        shapes |= affine(f'{layer}self_attn.attention_weights', samples, CHANNELS)
        shapes |= affine(f'{layer}self_attn.value_proj', CHANNELS, CHANNELS)
        shapes |= affine(f'{layer}self_attn.output_proj', CHANNELS, CHANNELS)
        shapes |= affine(f'{layer}linear1', ENCODER_FFN, CHANNELS)
        shapes |= affine(f'{layer}linear2', CHANNELS, ENCODER_FFN)
        shapes |= affine(f'{layer}norm1', CHANNELS) | affine(f'{layer}norm2', CHANNELS)
    shapes[f'{prefix}adapter_1.weight'] = (CHANNELS, in_channels[0], 1, 1)
    shapes |= affine(f'{prefix}adapter_1.norm', CHANNELS)
    shapes[f'{prefix}layer_1.weight'] = (CHANNELS, CHANNELS, 3, 3)
    shapes |= affine(f'{prefix}layer_1.norm', CHANNELS)
    return shapes | affine(f'{prefix}mask_features', CHANNELS, CHANNELS, 1, 1)


def detectron2_decoder(prefix: str) -> Shapes:
    shapes: Shapes = {
        f'{prefix}static_query.weight': (NUM_QUERIES, CHANNELS),
        f'{prefix}query_embed.weight': (NUM_QUERIES, CHANNELS),
        f'{prefix}level_embed.weight': (LEVELS, CHANNELS),
    }
    for index in range(NUM_DECODER_LAYERS):
        for kind, module in (('cross', 'multihead_attn'), ('self', 'self_attn')):
            layer = f'{prefix}transformer_{kind}_attention_layers.{index}.'
            shapes[f'{layer}{module}.in_proj_weight'] = (3 * CHANNELS, CHANNELS)
            shapes[f'{layer}{module}.in_proj_bias'] = (3 * CHANNELS,)
            shapes |= affine(f'{layer}{module}.out_proj', CHANNELS, CHANNELS)
            shapes |= affine(f'{layer}norm', CHANNELS)
        layer = f'{prefix}transformer_ffn_layers.{index}.'
        shapes |= affine(f'{layer}linear1', DECODER_FFN, CHANNELS)
        shapes |= affine(f'{layer}linear2', CHANNELS, DECODER_FFN)
        shapes |= affine(f'{layer}norm', CHANNELS)
    shapes |= affine(f'{prefix}decoder_norm', CHANNELS)
    shapes |= affine(f'{prefix}class_embed', NUM_CLASSES + 1, CHANNELS)
    for index in range(3):
        shapes |= affine(f'{prefix}mask_embed.layers.{index}', CHANNELS, CHANNELS)
    return shapes


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Tensors with which every layer matters; those called an index or a mask hold nonsense."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith('running_var'):
            value = 0.5 + value.sigmoid()
        elif 'sampling_offsets.weight' in name:
            value *= 0.5 * shape[1] ** -0.5
        elif 'quer' in name or 'level_embed' in name or 'bias_table' in name:
            pass
        elif len(shape) > 1:
            value *= value[0].numel() ** -0.5
        elif 'sampling_offsets.bias' not in name:
            value = 0.1 * value + float(name.endswith('weight'))
        state[name] = value
    return state


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert not different
