"""What ``mmseg_m2f.accelerate`` refuses, by name, and what it leaves to the stock methods."""

import copy
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

import mmseg_m2f
from mmseg_m2f.adapters.acceleration import CannotAccelerateError, is_accelerated, restore
from tests.adapters import small_models
from tests.adapters.stock_models import batch, build, logits, losses, results

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


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
    lines = [line for line in said if 'not accelerated' in line]
    assert len(lines) == 1
    assert f'{part[1:]} of the head has hooks' if part else 'the head has hooks' in lines[0]
    handle.remove()
    results(model, data)
    assert len(heard) == 4


def test_restore_refuses_while_predict_is_under_an_autocast() -> None:
    model = mmseg_m2f.accelerate(build('mmdet'))
    mmseg_m2f.prepare_inference(model, dtype='bfloat16')
    before = copy.copy(vars(model))
    with pytest.raises(ValueError, match=r'predict of Mask2Former is not what accelerate put'):
        restore(model)
    assert vars(model) == before


def test_accelerate_refuses_to_replace_an_autocast() -> None:
    model = mmseg_m2f.prepare_inference(build('mmdet'), dtype='bfloat16')
    with pytest.raises(CannotAccelerateError, match=r'predict of the model .* accelerate first'):
        mmseg_m2f.accelerate(model)
    assert not is_accelerated(model)


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


FOCAL = {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'loss_weight': 3.0}
SMOOTH = {'type': 'mmdet.DiceLoss', 'naive_dice': True, 'eps': 2.0, 'activate': True}


@pytest.mark.parametrize('setting', [{'loss_mask': FOCAL}, {'loss_dice': SMOOTH}])
def test_losses_that_we_do_not_have_stay(setting: dict[str, Any], said: list[str]) -> None:
    """The network is accelerated all the same."""
    model, data = build('mmdet', **setting).double(), batch('mmdet')
    theirs = losses(model, data)
    ours = losses(mmseg_m2f.accelerate(model), data)
    assert 'loss' not in vars(model.panoptic_head)
    assert 'forward' in vars(model.panoptic_head)
    for name, value in ours.items():
        # The bound of test_accelerate.py.
        assert value.item() == pytest.approx(theirs[name].item(), rel=1e-6)
    assert any('the losses and the matching stay' in line for line in said)


@pytest.mark.parametrize(
    'change',
    [lambda costs: costs.append(costs[0]), lambda costs: setattr(costs[2], 'eps', 2.0)],
    ids=['twice', 'eps'],
)
def test_costs_that_we_do_not_have_keep_the_stock_losses(change: Any, said: list[str]) -> None:
    model = build('mmdet')
    change(model.panoptic_head.assigner.match_costs)
    mmseg_m2f.accelerate(model)
    assert 'loss' not in vars(model.panoptic_head)
    assert any('as a match cost' in line for line in said)


def test_a_cost_that_the_stock_matcher_lacks_is_left_out() -> None:
    model = build('mmdet')
    del model.panoptic_head.assigner.match_costs[1]
    mmseg_m2f.accelerate(model)
    costs = model.panoptic_head.loss.__self__.ours.resolved_config()['matcher']['costs']
    assert set(costs) == {'cls', 'dice'}


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


def changed(package: str, path: str, value: Any) -> nn.Module:
    """Build a stock model and set the attribute, or the element of a sequence, at ``path``."""
    model = build(package)
    *parents, last = path.split('.')
    node: Any = model
    for name in parents:
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    if last.isdigit():
        node[int(last)] = value
    else:
        setattr(node, last, value)
    return model


MODELS = [
    (
        lambda: nn.Linear(1, 1),
        'torch.Linear is no Mask2Former of mmseg or mmdet: it has neither decode_head nor',
    ),
    (small_models.build, 'decode_head is of mmseg_m2f: there is nothing to swap'),
    (lambda: mmseg_m2f.accelerate(build('mmseg')), 'the model is accelerated already'),
    (maskformer, 'panoptic_head is mmdet.MaskFormerHead; only mmseg.Mask2FormerHead or mmdet.Mask'),
    (subclass, 'panoptic_head is mine.MyHead; only'),
    (
        lambda: build('mmdet', enforce_decoder_input_project=True),
        'panoptic_head.decoder_input_projs.0.weight',
    ),
    (
        lambda: build('mmdet').half(),
        'is torch.float16, our parts compute with weights of float32 or float64 only',
    ),
]
CHANGES = [
    (
        ('mmdet', 'panoptic_head.transformer_decoder.layers.1.self_attn.attn.dropout', 0.1),
        '1.self_attn.attn of the head (torch.MultiheadAttention) has dropout = 0.1,',
    ),
    (
        ('mmdet', 'panoptic_head.transformer_decoder.layers.1.ffn.layers.2.p', 0.1),
        'transformer_decoder.layers.1.ffn.layers.2 of the head (torch.Dropout) has p = 0.1,',
    ),
    (
        ('mmseg', 'decode_head.pixel_decoder.encoder.layers.0.ffn.layers.0.1', nn.GELU()),
        'decode_head: pixel_decoder.encoder.layers.0.ffn.layers.0.1 of the head is torch.',
    ),
    (
        ('mmseg', 'decode_head.transformer_decoder.post_norm.eps', 1e-6),
        'transformer_decoder.post_norm of the head (torch.LayerNorm) has eps = 1e-06, our parts',
    ),
    (
        ('mmseg', 'decode_head.pixel_decoder.mask_feature.stride', (2, 2)),
        'pixel_decoder.mask_feature of the head (mmcv.Conv2d) has stride = (2, 2), our parts',
    ),
    (
        ('mmdet', 'panoptic_head.decoder_positional_encoding.temperature', 20),
        'decoder_positional_encoding of the head (mmdet.SinePositionalEncoding) has temper',
    ),
    (
        ('mmdet', 'panoptic_head.transformer_decoder.layers.0.self_attn.num_heads', 4),
        'num_heads is [4, 8], our parts have one for all',
    ),
    (('mmdet', 'panoptic_fusion_head.test_cfg.object_mask_thr', 2), 'object_mask_thr'),
]
REFUSALS = [*MODELS, *((partial(changed, *change), reason) for change, reason in CHANGES)]


@pytest.mark.parametrize(('case', 'reason'), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_refusals_name_what_and_why(case: Any, reason: str) -> None:
    model = case()
    methods = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(CannotAccelerateError, match=re.escape(reason)):
        mmseg_m2f.accelerate(model)
    assert all(vars(m).keys() == methods[name].keys() for name, m in model.named_modules())
