"""``prepare_inference(dtype=..., cast_weights=True)``: what the autocast makes, made once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip('mmseg')

from prepared_models import build, outputs

import mmseg_m2f
from mmseg_m2f.adapters.cast_weights import cast_weights
from mmseg_m2f.adapters.trials import CannotPrepareError

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
BFLOAT16 = {'dtype': 'bfloat16', 'cast_weights': True}


def names_of(model: nn.Module, dtype: torch.dtype) -> set[str]:
    return {name for name, value in model.state_dict().items() if value.dtype == dtype}


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
    for found, wanted in zip(outputs(model, kind), expected, strict=True):
        assert torch.equal(found, wanted)


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
    for found, wanted in zip(outputs(model, 'segmentor'), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_parameters_stay_the_same_objects_in_their_order_of_memory() -> None:
    model = build('segmentor')
    before = dict(model.named_parameters())
    mmseg_m2f.prepare_inference(model, fuse_norms=False, **BFLOAT16)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    assert after['backbone.conv1.weight'].is_contiguous(memory_format=torch.channels_last)


def test_an_accelerated_model_stays_accelerated() -> None:
    model = mmseg_m2f.accelerate(build('stock'))
    expected = outputs(mmseg_m2f.prepare_inference(copy.deepcopy(model), dtype='bfloat16'), 'stock')
    mmseg_m2f.prepare_inference(model, **BFLOAT16)
    assert all(name.startswith('backbone.') for name in names_of(model, torch.bfloat16))
    for found, wanted in zip(outputs(model, 'stock'), expected, strict=True):
        assert torch.equal(found, wanted)


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


class Exact(nn.Conv2d):
    """Computes in float32 whatever the autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast('cpu', enabled=False):
            return F.conv2d(x, self.weight, stride=2, padding=3)


def test_a_backbone_that_needs_its_weights_in_float32_is_refused() -> None:
    model = build('segmentor')
    conv = model.backbone.conv1
    model.backbone.conv1 = Exact(3, conv.out_channels, 7, bias=False)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(
        CannotPrepareError, match=r'cannot be cast .*RuntimeError.*cast_weights=False'
    ):
        mmseg_m2f.prepare_inference(model, **BFLOAT16)
    assert list(model.state_dict()) == list(state)
    assert not names_of(model, torch.bfloat16)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert 'predict' not in vars(model)


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
    for found, wanted in zip(outputs(model, 'segmentor'), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(CannotPrepareError, match='load them into a new model'):
        mmseg_m2f.prepare_inference(model, **settings)
