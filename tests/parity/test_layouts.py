"""One set of weights in our models and in others: the same logits, by every way of conversion.

The stock heads of mmseg and mmdet get our weights and give them back; an official checkpoint, made
from published names, goes to Hugging Face's model by a table of its own and to ours by our key map.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmseg_m2f.checkpoints import detect_layout, to_ours, to_theirs
from tests.checkpoints.published_names import (
    BACKBONES,
    NUM_CLASSES,
    NUM_DECODER_LAYERS,
    NUM_QUERIES,
    detectron2,
    random_state,
)

mmseg = pytest.importorskip('mmseg')

from mmseg.registry import MODELS as MMSEG_MODELS  # noqa: E402

from tests.checkpoints.our_models import build_segmentor  # noqa: E402
from tests.parity.parity_weights import redraw  # noqa: E402
from tests.parity.stock_heads import (  # noqa: E402
    FLOAT32,
    FLOAT64,
    attending,
    error,
    float64_positions,
    huggingface_config,
    our_logits,
    stock_logits,
)

# Images of each backbone.
IMAGES = {'r18': (2, 3, 96, 160), 'r50': (1, 3, 64, 96), 'swin-t': (1, 3, 64, 96)}

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


class Pair(NamedTuple):
    """Our model and a stock one of mmseg or mmdet, on the same weights; what holds their heads."""

    ours: nn.Module
    theirs: nn.Module
    head: str
    layout: str
    size: tuple[int, ...] = ()


def stock_model(package: ModuleType, name: str, head: str, **classes: int) -> Any:
    """The model of a stock configuration, smaller only by its queries and classes."""
    folder = Path(package.__file__).parent / '.mim/configs/mask2former'
    model = Config.fromfile(folder / f'mask2former_{name}.py').model
    model.backbone.init_cfg = None
    model[head].update(num_queries=NUM_QUERIES, **classes)
    model[head].loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    return model


def segmentors(backbone: str) -> Pair:
    init_default_scope('mmseg')
    long = {'r18': 'r50'}.get(backbone, backbone)
    name = f'{long}_8xb2-160k_ade20k-512x512'
    model = stock_model(mmseg, name, 'decode_head', num_classes=NUM_CLASSES)
    set_depth(model, 'decode_head', backbone)
    theirs = MMSEG_MODELS.build(model)
    model.decode_head = our_head('Mask2FormerHead', model.decode_head)
    return Pair(MMSEG_MODELS.build(model), theirs, 'decode_head', 'mmseg')


def detectors(backbone: str, task: str, things: int) -> Pair:
    mmdet = pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    long = 'swin-t-p4-w7-224' if backbone == 'swin-t' else 'r50'
    sizes = {'num_things_classes': things, 'num_stuff_classes': NUM_CLASSES - things}
    model = stock_model(mmdet, f'{long}_8xb2-lsj-50e_{task}', 'panoptic_head', **sizes)
    model.panoptic_fusion_head.update(sizes)
    set_depth(model, 'panoptic_head', backbone)
    theirs = MODELS.build(model)
    head = our_head('Mask2FormerUniversalHead', model.panoptic_head)
    ours = {
        'type': 'mmseg_m2f.Mask2Former',
        'data_preprocessor': model.data_preprocessor,
        'backbone': model.backbone,
        'panoptic_head': {**head, 'thing_ids': list(range(things))},
    }
    return Pair(MODELS.build(ours), theirs, 'panoptic_head', 'mmdet')


def set_depth(model: Any, head: str, backbone: str) -> None:
    if backbone == 'r18':
        model.backbone.depth = 18
        model[head].in_channels = [64, 128, 256, 512]


def our_head(name: str, theirs: Any) -> dict[str, Any]:
    sizes = {'num_classes': NUM_CLASSES, 'num_queries': NUM_QUERIES}
    return {'type': f'mmseg_m2f.{name}', 'in_channels': theirs.in_channels, **sizes}


PAIRS: dict[str, Callable[[str], Pair]] = {
    'semantic': segmentors,
    'instance': lambda backbone: detectors(backbone, 'coco', NUM_CLASSES),
    'panoptic': lambda backbone: detectors(backbone, 'coco-panoptic', 4),
}


CASES = [f'{task} {name}' for task in PAIRS for name in BACKBONES]


@pytest.fixture(scope='module', params=[*CASES, 'semantic r18', 'panoptic r18'])
def pair(request: pytest.FixtureRequest) -> Pair:
    task, backbone = request.param.split()
    built = PAIRS[task](backbone)._replace(size=IMAGES[backbone])
    redraw(built.ours)
    built.theirs.load_state_dict(to_theirs(built.ours.state_dict(), built.layout))
    for model in (built.ours, built.theirs):
        model.eval()
    return built


def test_the_way_back(pair: Pair) -> None:
    ours, theirs = (model.state_dict() for model in (pair.ours, pair.theirs))
    assert detect_layout(theirs) == pair.layout
    assert detect_layout(ours) == 'mmseg_m2f'
    back = to_ours(theirs, pair.layout, pair.head)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], value) for key, value in ours.items())


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@torch.no_grad()
def test_logits_of_stock_models(pair: Pair, dtype: torch.dtype) -> None:
    """In float32 ours attend under their masks: a logit at the threshold falls to either side."""
    sides = (pair.theirs.to(dtype), pair.ours.to(dtype))
    images = torch.randn(pair.size, dtype=dtype)
    exact = dtype == torch.float64
    with float64_positions() if exact else nullcontext():
        their_maps, our_maps = (model.extract_feat(images) for model in sides)
        their_head, our_head = (getattr(model, pair.head) for model in sides)
        theirs, may_attend = stock_logits(their_head, their_maps)
        assert len(theirs.classes) == NUM_DECODER_LAYERS + 1
        with attending(may_attend, inject=not exact):
            ours = our_logits(our_head, our_maps)
    for model in sides:
        model.float()  # the weights were drawn in float32: nothing is lost
    assert max(map(error, ours, theirs)) <= (FLOAT64 if exact else FLOAT32)


ENCODER = 'model.pixel_level_module.encoder.'
DECODER = 'model.pixel_level_module.decoder.'
TRANSFORMER = 'model.transformer_module.'
PIXELS = r'sem_seg_head\.pixel_decoder\.'
ENCODER_LAYER = PIXELS + r'transformer\.(encoder\.layers\.\d\.)'
PREDICTOR = r'sem_seg_head\.predictor\.'
CROSS, SELF, FFN = (
    PREDICTOR + rf'transformer_{part}_layers\.(\d)\.'
    for part in ('cross_attention', 'self_attention', 'ffn')
)
LAYER = rf'{TRANSFORMER}decoder.layers.\1.'
BLOCK = r'backbone\.(layers\.\d\.blocks\.\d\.)'
THEIR_BLOCK = rf'{ENCODER}encoder.\1'
NORM = {'norm.': 'normalization.', None: 'convolution.'}


def resnet_layer(hit: re.Match[str]) -> str:
    # Their stages and convolutions count from zero.
    stage, layer = int(hit['stage']) - 2, hit['layer']
    part = 'shortcut' if layer == 'shortcut' else f'layer.{int(layer[-1]) - 1}'
    return f'{ENCODER}encoder.stages.{stage}.layers.{hit["block"]}.{part}.{NORM[hit["norm"]]}'


# Official names to Hugging Face's, written out from the specification of both.
OFFICIAL_TO_HUGGINGFACE: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r'backbone\.stem\.conv1\.weight', f'{ENCODER}embedder.embedder.convolution.weight'),
    (r'backbone\.stem\.conv1\.norm\.', f'{ENCODER}embedder.embedder.normalization.'),
    (
        r'backbone\.res(?P<stage>\d)\.(?P<block>\d)\.(?P<layer>conv\d|shortcut)\.(?P<norm>norm\.)?',
        resnet_layer,
    ),
    (r'backbone\.patch_embed\.proj\.', f'{ENCODER}embeddings.patch_embeddings.projection.'),
    (r'backbone\.patch_embed\.norm\.', f'{ENCODER}embeddings.norm.'),
    *((rf'backbone\.norm{i}\.', f'{ENCODER}hidden_states_norms.stage{i + 1}.') for i in range(4)),
    (r'backbone\.(layers\.\d\.downsample\.)', THEIR_BLOCK),
    (BLOCK + r'norm1\.', THEIR_BLOCK + 'layernorm_before.'),
    (BLOCK + r'norm2\.', THEIR_BLOCK + 'layernorm_after.'),
    (BLOCK + r'mlp\.fc1\.', THEIR_BLOCK + 'intermediate.dense.'),
    (BLOCK + r'mlp\.fc2\.', THEIR_BLOCK + 'output.dense.'),
    (BLOCK + r'attn\.proj\.', THEIR_BLOCK + 'attention.output.dense.'),
    (BLOCK + r'attn\.relative', THEIR_BLOCK + 'attention.self.relative'),
    (BLOCK + r'attn\.qkv\.', THEIR_BLOCK + 'attention.self.[query|key|value].'),
    (PIXELS + r'transformer\.level_embed', f'{DECODER}level_embed'),
    (PIXELS + r'input_proj\.', f'{DECODER}input_projections.'),
    (PIXELS + r'mask_features\.', f'{DECODER}mask_projection.'),
    (PIXELS + r'(adapter_1|layer_1)\.norm\.', rf'{DECODER}\1.1.'),
    (PIXELS + r'(adapter_1|layer_1)\.weight', rf'{DECODER}\1.0.weight'),
    (ENCODER_LAYER + r'norm1\.', rf'{DECODER}\1self_attn_layer_norm.'),
    (ENCODER_LAYER + r'norm2\.', rf'{DECODER}\1final_layer_norm.'),
    (ENCODER_LAYER + r'linear(\d)\.', rf'{DECODER}\1fc\2.'),
    (ENCODER_LAYER + r'self_attn\.', rf'{DECODER}\1self_attn.'),
    (PREDICTOR + r'static_query\.', f'{TRANSFORMER}queries_features.'),
    (PREDICTOR + r'query_embed\.', f'{TRANSFORMER}queries_embedder.'),
    (PREDICTOR + r'level_embed\.', f'{TRANSFORMER}level_embed.'),
    (PREDICTOR + r'decoder_norm\.', f'{TRANSFORMER}decoder.layernorm.'),
    (PREDICTOR + r'class_embed\.', 'class_predictor.'),
    (
        PREDICTOR + r'mask_embed\.layers\.(\d)\.',
        rf'{TRANSFORMER}decoder.mask_predictor.mask_embedder.\1.0.',
    ),
    (CROSS + r'multihead_attn\.', LAYER + 'cross_attn.'),
    (CROSS + r'norm\.', LAYER + 'cross_attn_layer_norm.'),
    (SELF + r'self_attn\.in_proj_', LAYER + 'self_attn.[q_proj|k_proj|v_proj].'),
    (SELF + r'self_attn\.out_proj\.', LAYER + 'self_attn.out_proj.'),
    (SELF + r'norm\.', LAYER + 'self_attn_layer_norm.'),
    (FFN + r'linear(\d)\.', LAYER + r'fc\2.'),
    (FFN + r'norm\.', LAYER + 'final_layer_norm.'),
]


def official_to_huggingface(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename by the table above; ``[a|b|c]`` in a name takes a third of the rows each."""
    converted = {}
    for key, value in published.items():
        names = {
            re.sub(f'^{pattern}', name, key)
            for pattern, name in OFFICIAL_TO_HUGGINGFACE
            if re.match(pattern, key)
        }
        assert len(names) == 1, (key, names)
        (name,) = names
        if thirds := re.search(r'\[(.*)\]', name):
            for part, rows in zip(thirds[1].split('|'), value.chunk(3), strict=True):
                converted[name.replace(thirds[0], part)] = rows
        else:
            converted[name] = value
    return converted


def huggingface_model(backbone: str, state: dict[str, Tensor]) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    config = huggingface_config(backbone, num_queries=NUM_QUERIES)
    model, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True
    )
    # The losses' class weights, a classifier's norm, and the counters of batch norms.
    absent = re.compile(r'empty_weight|\.swin\.layernorm\.|num_batches_tracked')
    assert all(absent.search(key) for key in report['missing_keys'])
    assert not report['unexpected_keys']
    return model.eval()


@pytest.mark.parametrize('backbone', BACKBONES)
@torch.no_grad()
def test_an_official_checkpoint_in_hugging_faces_model(backbone: str) -> None:
    published = random_state(detectron2(backbone))
    left_out = ('relative_position_index', 'empty_weight')
    by_table = official_to_huggingface(
        {key: value for key, value in published.items() if not key.endswith(left_out)}
    )
    ours = to_ours(published, 'detectron2')
    by_us = to_theirs(ours, 'hf')
    counters = {key for key in by_us if key.endswith('num_batches_tracked')}
    assert by_us.keys() - counters == by_table.keys()
    assert all(torch.equal(by_us[key], value) for key, value in by_table.items())

    oracle = huggingface_model(backbone, by_table).double()
    segmentor = build_segmentor(backbone)
    segmentor.load_state_dict(ours)
    images = torch.randn(IMAGES[backbone], dtype=torch.float64)
    out = oracle(images, output_auxiliary_logits=True)
    logits = our_logits(segmentor.decode_head, segmentor.double().extract_feat(images))
    for found, key in zip(logits, ('class_queries_logits', 'masks_queries_logits'), strict=True):
        theirs = torch.stack([layer[key] for layer in (*out.auxiliary_logits, out)])
        assert error(found, theirs) <= FLOAT64
