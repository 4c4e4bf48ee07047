"""Residual networks computed in fewer passes: the same maps, gradients and refusals."""

import copy
import io

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu.convolution import winograd
from mmseg_m2f.cpu.speed_up import speed_up

mmseg_backbones = pytest.importorskip('mmseg.models.backbones')


def build(depth=18, norm_eval=True, requires_grad=False, cls='ResNet', **settings):
    torch.manual_seed(0)
    norm = {'type': 'BN', 'requires_grad': requires_grad}
    network = getattr(mmseg_backbones, cls)(
        depth=depth, norm_cfg=norm, norm_eval=norm_eval, **settings
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    network.train()  # which returns nothing
    return network


def pair(**settings):
    stock = build(**settings)
    ours = copy.deepcopy(stock)
    speed_up(ours)
    return stock, ours


def run(network, x):
    maps = network(x)
    sum(one.square().mean() for one in maps).backward()
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return [one.detach() for one in maps], grads


IMAGE = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))
NETWORKS = [
    {'depth': 18},
    {'depth': 50},
    {'depth': 50, 'requires_grad': True},
    {'depth': 50, 'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4)},
    {'depth': 50, 'with_cp': True},
    {'depth': 18, 'cls': 'ResNetV1c'},
    {'depth': 18, 'cls': 'ResNetV1d'},
    {'depth': 50, 'style': 'caffe', 'out_indices': (1, 3)},
]


# As mmseg calls it.
@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
@pytest.mark.parametrize('by_winograd', [False, True])
@pytest.mark.parametrize('settings', NETWORKS, ids=str)
def test_maps_and_gradients_are_the_stock_ones(settings, by_winograd, monkeypatch):
    if by_winograd:
        monkeypatch.setattr(winograd, 'FEWEST_MULTIPLICATIONS', 0)
    stock, ours = pair(**settings)
    assert list(ours.state_dict()) == list(stock.state_dict())
    (maps, grads), (our_maps, our_grads) = run(stock, IMAGE), run(ours, IMAGE)
    for one, other in zip(maps, our_maps, strict=True):
        assert (one - other).abs().max() < (1e-4 if by_winograd else 1e-5) * one.abs().max()
    assert grads.keys() == our_grads.keys()
    for name, grad in grads.items():
        # A ReLU whose input rounds to the other side of 0 moves a gradient a little.
        allowed = 2e-2 if by_winograd else 2e-3
        assert (grad - our_grads[name]).norm() < allowed * grad.norm(), name


def test_norms_in_training_mode_keep_their_statistics():
    stock, ours = pair(norm_eval=False, requires_grad=True)
    (maps, _), (our_maps, _) = run(stock, IMAGE), run(ours, IMAGE)
    for one, other in zip(maps, our_maps, strict=True):
        assert (one - other).abs().max() < 1e-3 * one.abs().max()
    for (name, one), (_, other) in zip(stock.named_buffers(), ours.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_a_hook_inside_a_block_is_called():
    _, ours = pair()
    called = []
    ours.layer1[0].bn1.register_forward_hook(lambda *_: called.append('norm'))
    ours.relu.register_forward_hook(lambda *_: called.append('stem'))
    ours(IMAGE)
    assert called == ['stem', 'norm']


@pytest.mark.parametrize('where', ['stem', 'block'])
def test_another_activation_is_not_taken_for_relu(where):
    stock, ours = pair()
    for network in (stock, ours):
        part = network if where == 'stem' else network.layer2[0]
        part.relu = nn.LeakyReLU(0.5)
    with torch.no_grad():
        for one, other in zip(stock(IMAGE), ours(IMAGE), strict=True):
            assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_somebody_s_own_forward_stays():
    network, block = build(), None
    network.layer1[0].forward = lambda x: x
    network.layer1[1].bn1.forward = lambda x: 0 * x
    speed_up(network)
    block = network.layer1[0]
    assert block(IMAGE) is IMAGE
    x = torch.ones(1, 64, 4, 4)
    # Nothing passes its norm but the shift of the second.
    assert torch.equal(network.layer1[1](x), type(network.layer1[1]).forward(network.layer1[1], x))


@pytest.mark.parametrize('how', ['double', 'autocast'])
def test_in_other_types_it_is_the_class_s_own(how):
    stock, ours = pair()
    x = IMAGE
    if how == 'double':
        stock, ours, x = stock.double(), ours.double(), x.double()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        for one, other in zip(stock(x), ours(x), strict=True):
            assert torch.equal(one, other)


def test_copies_and_saved_models_stay_fast_and_their_own():
    _, ours = pair()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        other.conv1.weight.data.zero_()
        with torch.no_grad():
            assert not torch.equal(other(IMAGE)[0], ours(IMAGE)[0])
        assert other.layer1[0].forward.__self__.block is other.layer1[0]


def test_frozen_norms_keep_nothing_for_the_backward_pass():
    """A convolution's result, which only the norm needs, is not among what is kept."""

    def kept(network):
        sizes = {}

        def note(value):
            sizes[value.untyped_storage().data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            network(IMAGE)
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    stock, ours = pair(depth=50)
    assert kept(ours) < 0.55 * kept(stock)


def test_other_backbones_are_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    speed_up(network)
    assert 'forward' not in vars(network[0])


def test_mmdet_s_network_is_known_too():
    mmdet_backbones = pytest.importorskip('mmdet.models.backbones')
    torch.manual_seed(0)
    stock = mmdet_backbones.ResNet(50, norm_cfg={'type': 'BN', 'requires_grad': False})
    stock.eval()
    ours = copy.deepcopy(stock)
    speed_up(ours)
    assert 'forward' in vars(ours)
    assert 'forward' in vars(ours.layer1[0])
    with torch.no_grad():
        for one, other in zip(stock(IMAGE), ours(IMAGE), strict=True):
            assert (one - other).abs().max() < 1e-5 * one.abs().max()
