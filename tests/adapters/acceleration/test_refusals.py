"""What ``mmseg_m2f.accelerate`` refuses, by name, and what it leaves to the stock path."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
transformers = pytest.importorskip('transformers')

import huggingface_models  # noqa: E402

import mmseg_m2f  # noqa: E402
from mmseg_m2f.adapters.acceleration import CannotAccelerateError, is_accelerated, restore  # noqa: E402
from mmseg_m2f.cpu.speed_up import speed_up  # noqa: E402
from tests.adapters.stock_models import batch, build, logits, losses, results  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


@pytest.mark.parametrize('part', ['', '.pixel_decoder', '.transformer_decoder.layers.1'])
def test_hooks_of_parts_send_to_the_stock_path(part: str, said: list[str]) -> None:
    """Features of a layer, for instance: ours would never call it."""
    model, data = mmseg_m2f.accelerate(build('mmseg')), batch('mmseg')
    heard: list[nn.Module] = []
    module = model.get_submodule(f'decode_head{part}')
    handle = module.register_forward_hook(lambda module, *_: heard.append(module))
    for _ in range(2):
        results(model, data)
        losses(model, data)
    assert len(heard) == 4
    lines = [line for line in said if 'not accelerated' in line]
    assert len(lines) == 1
    where = f'decode_head{part}' if part else 'the head'
    assert f'{where} has hooks' in lines[0]
    handle.remove()
    results(model, data)
    assert len(heard) == 4


def test_the_way_back_is_closed_once_predict_is_under_an_autocast() -> None:
    model = mmseg_m2f.accelerate(build('mmdet'))
    mmseg_m2f.prepare_inference(model, fuse_norms=False, dtype='bfloat16')
    before = copy.copy(vars(model))
    with pytest.raises(ValueError, match=r'predict of Mask2Former is not what accelerate put'):
        restore(model)
    assert vars(model) == before
    # Without it there is nothing in the way.
    mmseg_m2f.prepare_inference(model, fuse_norms=False)
    restore(copy.deepcopy(model))
    restore(model)
    assert not is_accelerated(model)


def test_an_autocast_around_predict_is_not_lost() -> None:
    model = mmseg_m2f.prepare_inference(build('mmdet'), dtype='bfloat16')
    with pytest.raises(CannotAccelerateError, match=r'under an autocast.*accelerate goes first'):
        mmseg_m2f.accelerate(model)
    assert not is_accelerated(model)
    mmseg_m2f.accelerate(mmseg_m2f.prepare_inference(model))
    assert is_accelerated(model)


def test_replaced_parts_send_to_the_stock_path(said: list[str]) -> None:
    model, data = build('mmdet'), batch('mmdet')
    mmseg_m2f.accelerate(model)
    model.panoptic_head.mask_embed[1] = nn.GELU()
    ours = logits(model, data)[1][-1]
    model.panoptic_head.query_feat = copy.deepcopy(model.panoptic_head.query_feat)
    # The backbone sums in another order where it is accelerated, which it stays.
    speed_up(restore(model).backbone)
    assert torch.equal(ours, logits(model, data)[1][-1])
    assert any('panoptic_head.mask_embed.1 has been replaced' in line for line in said)


def test_weights_of_half_a_float_send_to_the_stock_path(said: list[str]) -> None:
    model = mmseg_m2f.accelerate(build('mmseg')).bfloat16()
    # Which cannot either, and says so itself: its positions are float32.
    with pytest.raises(RuntimeError, match='same dtype'):
        results(model, batch('mmseg'))
    assert any('is torch.bfloat16' in line for line in said)


def test_losses_that_ours_are_not_stay(said: list[str]) -> None:
    """The network is accelerated all the same."""
    focal = {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'loss_weight': 3.0}
    model, data = build('mmdet', loss_mask=focal), batch('mmdet')
    theirs = losses(model, data)
    ours = losses(mmseg_m2f.accelerate(model), data)
    assert 'loss' not in vars(model.panoptic_head)
    assert 'forward' in vars(model.panoptic_head)
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name].item(), rel=1e-3)
    assert any('the losses and the matching stay' in line for line in said)


def no_model() -> nn.Module:
    return nn.Linear(1, 1)


def ours_already() -> nn.Module:
    from tests.adapters import small_models

    return small_models.build()


def twice() -> nn.Module:
    return mmseg_m2f.accelerate(build('mmseg'))


def maskformer() -> nn.Module:
    from mmdet.models import MaskFormerHead

    model = build('mmdet')
    model.panoptic_head = MaskFormerHead.__new__(MaskFormerHead)
    nn.Module.__init__(model.panoptic_head)
    return model


def subclass() -> nn.Module:
    model = build('mmdet')
    head = type(model.panoptic_head)
    model.panoptic_head.__class__ = type('MyHead', (head,), {'__module__': 'mine'})
    return model


def dropout() -> nn.Module:
    model = build('mmdet')
    model.panoptic_head.transformer_decoder.layers[1].ffn.layers[2].p = 0.1
    return model


def activation() -> nn.Module:
    model = build('mmseg')
    model.decode_head.pixel_decoder.encoder.layers[0].ffn.layers[0][1] = nn.GELU()
    return model


def norm() -> nn.Module:
    model = build('mmseg')
    model.decode_head.transformer_decoder.post_norm.eps = 1e-6
    return model


def position() -> nn.Module:
    model = build('mmdet')
    model.panoptic_head.decoder_positional_encoding.temperature = 20
    return model


def projection() -> nn.Module:
    return build('mmdet', enforce_decoder_input_project=True)


def half() -> nn.Module:
    return build('mmdet').half()


REFUSALS = [
    (no_model, 'torch.Linear is no Mask2Former: it has neither decode_head nor panoptic_head'),
    (ours_already, 'decode_head is of mmseg_m2f: there is nothing to swap'),
    (twice, 'the model is accelerated already'),
    (maskformer, 'panoptic_head is mmdet.MaskFormerHead; what can be swapped is mmseg.Mask2Former'),
    (subclass, 'panoptic_head is mine.MyHead; what can be swapped'),
    (dropout, 'transformer_decoder.layers.1.ffn.layers.2 (torch.Dropout) has p = 0.1, our parts'),
    (activation, 'decode_head.pixel_decoder.encoder.layers.0.ffn.layers.0.1 is torch.GELU, which'),
    (norm, 'decode_head.transformer_decoder.post_norm (torch.LayerNorm) has eps = 1e-06, ours'),
    (position, 'panoptic_head.positional_encoding.temperature is 20, our parts have 10000 only'),
    (projection, 'panoptic_head.decoder_input_projs.0.weight'),
    (half, 'is torch.float16, ours computes with weights of float32 or float64 only'),
]


@pytest.mark.parametrize(
    ('case', 'reason'), REFUSALS, ids=lambda case: getattr(case, '__name__', '')
)
def test_refusals_name_what_and_why(case: Any, reason: str) -> None:
    model = case()
    methods = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(CannotAccelerateError, match=re.escape(reason)) as caught:
        mmseg_m2f.accelerate(model)
    assert 'dropin' not in str(caught.value)
    assert all(vars(m).keys() == methods[name].keys() for name, m in model.named_modules())


def without_head() -> nn.Module:
    return huggingface_models.build().model


def their_maskformer() -> nn.Module:
    return transformers.MaskFormerForInstanceSegmentation.__new__(
        transformers.MaskFormerForInstanceSegmentation
    )


def their_half() -> nn.Module:
    return huggingface_models.build().bfloat16()


def twice_theirs() -> nn.Module:
    return mmseg_m2f.accelerate(huggingface_models.build())


def their_subclass() -> nn.Module:
    model = huggingface_models.build()
    model.__class__ = type('Mine', (type(model),), {'__module__': 'mine'})
    return model


def quantised() -> nn.Module:
    model = huggingface_models.build()
    layer = model.model.transformer_module.decoder.layers[0]
    layer.fc1 = nn.Bilinear(2, 2, 2)
    return model


THEIR_REFUSALS = [
    (without_head, 'transformers.Mask2FormerModel is not Mask2FormerForUniversalSegmentation'),
    (
        their_maskformer,
        'transformers.MaskFormerForInstanceSegmentation is not Mask2FormerForUniversal',
    ),
    (their_half, 'is torch.bfloat16, ours computes with weights of float32 or float64 only'),
    (twice_theirs, 'the model is accelerated already'),
    (their_subclass, 'mine.Mine is not Mask2FormerForUniversalSegmentation itself'),
    (quantised, 'model.transformer_module.decoder.layers.0.fc1 is torch.Bilinear, which our'),
    ({'activation_function': 'gelu'}, 'activation_fn is transformers.GELUActivation, which our'),
    ({'dropout': 0.1}, 'dropout = 0.1, our parts have no dropout'),
    ({'pre_norm': True}, 'pre_norm = True, our decoder has its norms after'),
    ({'enforce_input_projection': True}, 'model.transformer_module.input_projections.0.weight'),
    ({'mask_feature_size': 32}, 'has the shape (32, 64, 1, 1), our parts want (64, 64, 1, 1)'),
    ({'common_stride': 8}, 'common_stride leaves 3 of the 4 maps'),
]


@pytest.mark.parametrize(
    ('case', 'reason'), THEIR_REFUSALS, ids=lambda case: getattr(case, '__name__', str(case))[:30]
)
def test_refusals_of_hugging_face_s_model(case: Any, reason: str) -> None:
    model = case() if callable(case) else huggingface_models.build(**case)
    forward = model.forward
    with pytest.raises(CannotAccelerateError, match=re.escape(reason)):
        mmseg_m2f.accelerate(model)
    assert model.forward == forward
