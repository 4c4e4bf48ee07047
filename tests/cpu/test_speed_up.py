"""The changes that ``speed_up`` makes in a model, and that ``restore`` takes back."""

import copy
import io

import pytest
import torch
from torch import nn

from mmseg_m2f.core.layers import FeedForward
from mmseg_m2f.cpu import onednn, restore, speed_up

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), FeedForward(8, 16), nn.Sequential(FeedForward(8, 16)))


def with_forward(model):
    return {name for name, part in model.named_modules() if 'forward' in vars(part)}


def test_known_parts_get_a_forward_and_unknown_ones_nothing():
    model = network()
    assert speed_up(model) is model
    assert with_forward(model) == {'1', '2.0'}
    once = [vars(model[1])['forward'], vars(model[2][0])['forward']]
    speed_up(model)
    assert [vars(model[1])['forward'], vars(model[2][0])['forward']] == once


def check_that_restore_leaves_nothing_behind(model, known):
    before = [dict(vars(part)) for part in model.modules()]
    assert with_forward(speed_up(model)) == known
    assert restore(model) is model
    assert [dict(vars(part)) for part in model.modules()] == before


def test_restore_leaves_nothing_behind():
    check_that_restore_leaves_nothing_behind(network(), {'1', '2.0'})


@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_restore_leaves_nothing_behind_in_a_backbone(package):
    backbones = pytest.importorskip(f'{package}.models.backbones')
    resnet, swin = backbones.resnet, backbones.swin
    blocks = [resnet.BasicBlock(8, 8), resnet.Bottleneck(8, 2), swin.SwinBlock(8, 2, 16)]
    known = {'0', '1', '2', '2.attn.w_msa'}
    check_that_restore_leaves_nothing_behind(nn.Sequential(*blocks), known)


def test_somebody_s_own_forward_and_subclasses_are_left_alone():
    class Own(FeedForward):
        pass

    model = nn.Sequential(FeedForward(8, 16), Own(8, 16))
    model[0].forward = own = nn.Identity().forward
    restore(speed_up(model))
    assert vars(model[0])['forward'] == own
    assert 'forward' not in vars(speed_up(model)[1])


def test_the_state_dict_stays_what_it_was():
    model = network()
    state = copy.deepcopy(model.state_dict())
    speed_up(model)
    assert list(model.state_dict()) == list(state)
    other = {key: value + 1 for key, value in state.items()}
    model.load_state_dict(other)
    plain = network()
    plain.load_state_dict(other)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-4)


def test_copies_and_saved_models_compute_with_their_own_weights():
    model, x = speed_up(network()), torch.randn(3, 8)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = model(x).detach()
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert with_forward(other) == with_forward(model)
        assert torch.equal(other(x), expected)
        other[1].linear2.bias.data += 1
        assert not torch.equal(other(x), expected)
        assert not with_forward(restore(other))
    assert torch.equal(model(x), expected)


def test_a_wrapper_that_exchanges_the_class_is_obeyed():
    """Sharding and parametrizations do this."""
    part, x = speed_up(FeedForward(8, 16)), torch.randn(3, 8)
    expected = part(x)
    part.__class__ = type('Sharded', (FeedForward,), {})
    torch.testing.assert_close(part(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert part(x).shape == x.shape


def test_where_the_probe_fails_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(onednn, 'failure', lambda: 'no oneDNN')
    assert not with_forward(speed_up(network()))
