"""``prepare_inference(dtype=..., cast_weights=True)``: what the autocast makes, made once."""

import copy
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvWS2d
from mmengine import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip('mmseg')

import mmseg_m2f
from mmseg_m2f.adapters.acceleration import is_accelerated
from mmseg_m2f.adapters.inference.cast_weights import cast_weights
from mmseg_m2f.adapters.inference.trials import CannotPrepareError
from tests.adapters.inference.prepared_models import build, outputs

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
BFLOAT16 = {'dtype': 'bfloat16', 'cast_weights': True}


def names_of(model: nn.Module, dtype: torch.dtype) -> set[str]:
    return {name for name, value in model.state_dict().items() if value.dtype == dtype}


def assert_same_results(model: nn.Module, kind: str, expected: tuple[Tensor, Tensor]) -> None:
    for found, wanted in zip(outputs(model, kind), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize('fuse_norms', [True, False], ids=['fused', 'with_norms'])
@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock', 'fcn'])
def test_results_are_those_of_the_autocast(kind: str, fuse_norms: bool) -> None:
    model = build(kind)
    plain = mmseg_m2f.prepare_inference(
        copy.deepcopy(model), fuse_norms=fuse_norms, dtype='bfloat16'
    )
    expected = outputs(plain, kind)
    mmseg_m2f.prepare_inference(model, fuse_norms=fuse_norms, **BFLOAT16)
    assert 'backbone.conv1.weight' in names_of(model, torch.bfloat16)
    assert_same_results(model, kind, expected)


def test_of_our_parts_products_are_cast_and_nothing_else() -> None:
    model = build('segmentor')
    mmseg_m2f.prepare_inference(model, **BFLOAT16)
    cast = names_of(model, torch.bfloat16)
    of_head = {name for name in cast if not name.startswith('backbone.')}
    assert of_head
    assert all(name.startswith('decode_head.decoder.') for name in of_head)
    left = {
        name.removeprefix('decode_head.decoder.')
        for name in names_of(model, torch.float32)
        if name.startswith('decode_head.decoder.')
    }
    norms = {
        'norm',
        *(f'layers.{i}.{kind}_norm' for i in (0, 1) for kind in ('cross', 'self', 'ffn')),
    }
    embeddings = {'query_feat.weight', 'query_embed.weight', 'level_embed.weight'}
    assert left == embeddings | {f'{norm}.{kind}' for norm in norms for kind in ('weight', 'bias')}


def test_a_pixel_decoder_that_computes_in_bfloat16_is_cast_too() -> None:
    model = build('segmentor', mixed_precision=True)
    expected = outputs(
        mmseg_m2f.prepare_inference(copy.deepcopy(model), dtype='bfloat16'), 'segmentor'
    )
    mmseg_m2f.prepare_inference(model, **BFLOAT16)
    pixel_decoder = model.decode_head.pixel_decoder
    assert pixel_decoder.mask_proj.weight.dtype == torch.bfloat16
    assert pixel_decoder.layers[0].attn.value_proj.weight.dtype == torch.bfloat16
    assert pixel_decoder.level_embed.dtype == torch.float32
    assert_same_results(model, 'segmentor', expected)


def test_the_parameters_stay_the_same_objects_in_their_order_of_memory() -> None:
    model = build('segmentor')
    before = dict(model.named_parameters())
    mmseg_m2f.prepare_inference(model, fuse_norms=False, **BFLOAT16)
    after = dict(model.named_parameters())
    assert after['backbone.conv1.weight'].dtype == torch.bfloat16
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    assert after['backbone.conv1.weight'].is_contiguous(memory_format=torch.channels_last)


def test_an_accelerated_model_stays_accelerated() -> None:
    model = mmseg_m2f.accelerate(build('stock'))
    expected = outputs(mmseg_m2f.prepare_inference(copy.deepcopy(model), dtype='bfloat16'), 'stock')
    mmseg_m2f.prepare_inference(model, **BFLOAT16)
    assert is_accelerated(model)
    cast = names_of(model, torch.bfloat16)
    assert 'backbone.conv1.weight' in cast
    assert all(name.startswith('backbone.') for name in cast)
    assert_same_results(model, 'stock', expected)


def test_what_has_a_type_of_its_own_is_left() -> None:
    class Quantised(nn.Parameter):
        pass

    model = build('segmentor')
    model.backbone.conv1.weight = Quantised(model.backbone.conv1.weight.data)
    model.backbone.layer1[0].conv1.weight.data = model.backbone.layer1[0].conv1.weight.data.double()
    cast_weights(model, torch.bfloat16)
    assert model.backbone.conv1.weight.dtype == torch.float32
    assert model.backbone.layer1[0].conv1.weight.dtype == torch.float64
    assert model.backbone.layer1[0].conv2.weight.dtype == torch.bfloat16


class ExactConvolution(nn.Conv2d):
    """Computes in float32 whatever the autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast('cpu', enabled=False):
            return F.conv2d(x, self.weight, self.bias, stride=2, padding=3)


class ExactLinear(nn.Linear):
    """Computes in float32 whatever the autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast('cpu', enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


def exact_convolution(model: Any) -> None:
    model.backbone.conv1 = ExactConvolution(3, 8, 7, bias=False)


def exact_linear(model: Any) -> None:
    model.decode_head.decoder.class_embed = ExactLinear(32, 4)


def exact_attention(model: Any) -> None:
    model.decode_head.pixel_decoder.layers[0].attn.value_proj = ExactLinear(32, 32)


def standardised(model: Any) -> None:
    """Weights less their mean, over their deviation, taken in float32."""
    model.backbone.conv1 = ConvWS2d(3, 8, 7, stride=2, padding=3, bias=False)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (exact_convolution, r'cannot be cast .*RuntimeError'),
        (exact_linear, r'cannot be cast .*RuntimeError'),
        (exact_attention, r'cannot be cast .*RuntimeError'),
        (standardised, 'gives other numbers once it is cast .*not all weights are read by'),
    ],
)
def test_weights_that_are_needed_in_float32_are_refused(change: Any, message: str) -> None:
    model = build('segmentor', mixed_precision=True)
    change(model)
    settings = {'fuse_norms': False, 'channels_last': False, **BFLOAT16}
    without = {**settings, 'cast_weights': False}
    outputs(mmseg_m2f.prepare_inference(copy.deepcopy(model), **without), 'segmentor')
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotPrepareError, match=f'{message}.*cast_weights=False'):
        mmseg_m2f.prepare_inference(model, **settings)
    assert list(model.state_dict()) == list(state)
    assert not names_of(model, torch.bfloat16)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert 'predict' not in vars(model)


def test_parameters_of_their_own_are_left_to_subclasses() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.gamma = nn.Parameter(torch.ones(2))

    model = build('segmentor')
    model.backbone.scaled = Scaled()
    cast_weights(model, torch.bfloat16)
    assert model.backbone.scaled.weight.dtype == torch.bfloat16
    assert model.backbone.scaled.gamma.dtype == torch.float32


def test_a_transformer_whose_maps_come_in_pairs() -> None:
    """With the attention of PyTorch."""
    init_default_scope('mmseg')
    model = build('fcn')
    settings = {'img_size': 64, 'embed_dims': 16, 'num_layers': 1, 'num_heads': 2}
    backbone = {'type': 'VisionTransformer', 'output_cls_token': True, **settings}
    model.backbone = MODELS.build(ConfigDict(backbone))
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        image = torch.randn(1, 3, 64, 64)
        [expected] = model.backbone(image)
        mmseg_m2f.prepare_inference(model, **BFLOAT16)
        [found] = model.backbone(image)
    attention = model.backbone.layers[0].attn.attn
    assert isinstance(attention, nn.MultiheadAttention)
    assert attention.in_proj_weight.dtype == torch.bfloat16
    assert attention.out_proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_without_a_type_there_is_nothing_to_cast_to() -> None:
    with pytest.raises(CannotPrepareError, match=r"cast_weights=True.*dtype='bfloat16'"):
        mmseg_m2f.prepare_inference(build('segmentor'), cast_weights=True)


@pytest.mark.parametrize('settings', [{}, {'dtype': 'float32'}])
def test_there_is_no_way_back(settings: dict[str, Any]) -> None:
    model = mmseg_m2f.prepare_inference(build('segmentor'), **BFLOAT16)
    expected = outputs(model, 'segmentor')
    with pytest.raises(CannotPrepareError, match='load them into a new model'):
        mmseg_m2f.prepare_inference(model, **settings)
    # The same type again is fine, with the switch or without; then still there is none.
    mmseg_m2f.prepare_inference(model, **BFLOAT16)
    mmseg_m2f.prepare_inference(model, dtype='bfloat16')
    assert_same_results(model, 'segmentor', expected)
    with pytest.raises(CannotPrepareError, match='load them into a new model'):
        mmseg_m2f.prepare_inference(model, **settings)


def test_norms_are_fused_before_or_never() -> None:
    model = build('segmentor')
    mmseg_m2f.prepare_inference(model, fuse_norms=False, **BFLOAT16)
    expected = outputs(model, 'segmentor')
    with pytest.raises(CannotPrepareError, match='fuse_norms=True would start from'):
        mmseg_m2f.prepare_inference(model, dtype='bfloat16')
    assert_same_results(model, 'segmentor', expected)
