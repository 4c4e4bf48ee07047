"""``mmseg_m2f.accelerate`` refuses some models by name and leaves others to stock methods."""

import copy
import re
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdet.models.losses import FocalLoss
from mmdet.models.task_modules import ClassificationCost, DiceCost

import mmseg_m2f
from mmseg_m2f.adapters.acceleration import CannotAccelerateError, is_accelerated, restore
from mmseg_m2f.adapters.migrate import stock_head
from tests.adapters import small_models
from tests.adapters.stock_models import batch, build, logits, losses, results

DECODER = 'panoptic_head.transformer_decoder.layers.1'


@pytest.mark.parametrize('part', ['', '.pixel_decoder', '.transformer_decoder.layers.1'])
def test_hooks_of_parts_send_to_the_stock_path(part: str, said: list[str]) -> None:
    """Users read the features of a layer by a hook; ours would never call it."""
    model, data = mmseg_m2f.accelerate(build('mmseg')), batch('mmseg')
    heard: list[nn.Module] = []
    module = model.get_submodule(f'decode_head{part}')
    handle = module.register_forward_hook(lambda module, *_: heard.append(module))
    for _ in range(2):
        results(model, data)
        losses(model, data)
    assert len(heard) == 4
    (line,) = [line for line in said if 'not accelerated' in line]
    assert (f'{part[1:]} of the head has hooks' if part else 'the head has hooks') in line
    handle.remove()
    results(model, data)
    assert len(heard) == 4


def test_replaced_parts_send_to_the_stock_path(said: list[str]) -> None:
    model, data = build('mmdet'), batch('mmdet')
    mmseg_m2f.accelerate(model)
    model.panoptic_head.mask_embed[1] = nn.GELU()
    ours = logits(model, data)[1][-1]
    model.panoptic_head.query_feat = copy.deepcopy(model.panoptic_head.query_feat)
    assert torch.equal(ours, logits(restore(model), data)[1][-1])
    assert any('mask_embed.1 of the head has been replaced' in line for line in said)


def test_weights_in_bfloat16_send_to_the_stock_path(said: list[str]) -> None:
    model = mmseg_m2f.accelerate(build('mmseg')).bfloat16()
    # The stock path cannot compute with them either: its positions are in float32.
    with pytest.raises(RuntimeError, match='same dtype'):
        results(model, batch('mmseg'))
    assert any('is torch.bfloat16' in line for line in said)


def test_an_autocast_of_predict_is_not_lost() -> None:
    """Neither is it replaced by accelerate, nor taken away by restore."""
    model = mmseg_m2f.prepare_inference(build('mmdet'), dtype='bfloat16')
    with pytest.raises(CannotAccelerateError, match=r'predict of the model .* accelerate first'):
        mmseg_m2f.accelerate(model)
    assert not is_accelerated(model)
    model = mmseg_m2f.prepare_inference(mmseg_m2f.accelerate(build('mmdet')), dtype='bfloat16')
    before = copy.copy(vars(model))
    with pytest.raises(ValueError, match=r'predict of Mask2Former is not what accelerate put'):
        restore(model)
    assert vars(model) == before


def changed(path: str, value: Any) -> nn.Module:
    """Build a stock model and set an attribute."""
    model = build('mmseg' if path.startswith('decode_head') else 'mmdet')
    parent, _, name = path.rpartition('.')
    setattr(attrgetter(parent)(model), name, value)
    return model


@pytest.mark.parametrize(
    ('path', 'value', 'reason'),
    [
        ('loss_mask', FocalLoss(loss_weight=3.0), 'mmdet.FocalLoss as loss_mask'),
        ('loss_dice.eps', 2.0, 'mmdet.DiceLoss as loss_dice'),
        ('assigner.match_costs', [DiceCost(eps=2.0)], 'mmdet.DiceCost as a match cost'),
        ('assigner.match_costs', 2 * [ClassificationCost()], 'mmdet.ClassificationCost as a'),
    ],
)
def test_losses_and_costs_that_we_do_not_have_stay(
    path: str, value: Any, reason: str, said: list[str]
) -> None:
    """The network is accelerated all the same."""
    model, data = changed(f'panoptic_head.{path}', value).double(), batch('mmdet')
    theirs = losses(model, data)
    ours = losses(mmseg_m2f.accelerate(model), data)
    assert 'loss' not in vars(model.panoptic_head)
    assert 'forward' in vars(model.panoptic_head)
    for name, loss in ours.items():
        # With mmdet's positions in float32.
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-6)
    assert any('the losses and the matching stay' in line and reason in line for line in said)


def of_class(module: str, name: str) -> nn.Module:
    """Build a model whose head has another class."""
    model = build('mmdet')
    base = type(model.panoptic_head)
    model.panoptic_head.__class__ = type(name, (base,), {'__module__': module})
    return model


def assert_refused(model: nn.Module, reason: str) -> None:
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(CannotAccelerateError, match=re.escape(reason)):
        mmseg_m2f.accelerate(model)
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (lambda: nn.Linear(1, 1), 'torch.Linear is no Mask2Former of mmseg or mmdet'),
        (small_models.build, 'decode_head is of mmseg_m2f: there is nothing to swap'),
        (lambda: mmseg_m2f.accelerate(build('mmseg')), 'the model is accelerated already'),
        (lambda: of_class('mmdet', 'MaskFormerHead'), 'panoptic_head is mmdet.MaskFormerHead;'),
        (lambda: of_class('mine', 'Mask2FormerHead'), 'panoptic_head is mine.Mask2FormerHead;'),
        (lambda: build('mmdet').half(), 'is torch.float16, our parts compute with weights of'),
    ],
)
def test_models_without_a_stock_head_are_refused(make: Any, reason: str) -> None:
    assert_refused(make(), reason)


# tests/adapters/migrate has more of what the reader of a head refuses.
@pytest.mark.parametrize(
    ('path', 'value', 'reason'),
    [
        ('panoptic_fusion_head.test_cfg.object_mask_thr', 2, 'object_mask_thr must lie in [0, 1]'),
        (f'{DECODER}.self_attn.attn.dropout', 0.1, '(torch.MultiheadAttention) has dropout = 0.1'),
        ('panoptic_head.decoder_positional_encoding.temperature', 20, 'has temperature = 20, our'),
        ('decode_head.transformer_decoder.post_norm.eps', 1e-6, 'post_norm of the head (torch.L'),
        ('decode_head.pixel_decoder.mask_feature.stride', (2, 2), 'has stride = (2, 2), our parts'),
    ],
)
def test_other_settings_are_refused(path: str, value: Any, reason: str) -> None:
    assert_refused(changed(path, value), reason)


def test_parameters_that_one_side_lacks_are_named_with_the_other_side() -> None:
    head = build('mmdet').panoptic_head
    ours = stock_head.build_ours(head)
    ours.register_parameter('mine', nn.Parameter(torch.zeros(1)))
    del ours.decoder.norm
    message = (
        "only the stock head has ['decoder.norm.bias', 'decoder.norm.weight']; only ours has "
        "['mine']"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        stock_head.pair_parameters(ours, head)
