"""Residual networks of mmseg and mmdet with faster blocks, against the stock ones."""

import copy

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu import onednn, speed_up, winograd
from tests.cpu.conftest import double, hook_every_layer

mmseg_backbones = pytest.importorskip('mmseg.models.backbones')
pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
EPSILON = torch.finfo(torch.float32).eps
IMAGE = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))


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


def run(network, x):
    maps = network(x)
    sum(one.square().mean() for one in maps).backward()
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return [one.detach() for one in maps], grads


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
def test_maps_and_gradients_are_the_stock_ones(settings, by_winograd, monkeypatch, fast_calls):
    monkeypatch.setattr(winograd, 'FEWEST_MULTIPLICATIONS', 0 if by_winograd else 10**18)
    stock = build(**settings)
    ours = speed_up(copy.deepcopy(stock))
    assert list(ours.state_dict()) == list(stock.state_dict())
    (maps, grads), (our_maps, our_grads) = run(stock, IMAGE), run(ours, IMAGE)
    assert fast_calls
    # Errors of up to 50 layers, each a sum of up to 4,608 products, add up.
    allowed = 4 * EPSILON * 50 * (10 if by_winograd else 1)
    for one, other in zip(maps, our_maps, strict=True):
        assert (one - other).abs().max() < allowed * one.abs().max()
    assert grads.keys() == our_grads.keys()
    for name, grad in grads.items():
        # A ReLU whose input rounds to the other side of 0 moves a gradient a little.
        allowed = 2e-2 if by_winograd else 2e-3
        assert (grad - our_grads[name]).norm() < allowed * grad.norm(), name


def mmdet_network():
    backbones = pytest.importorskip('mmdet.models.backbones')
    return backbones.ResNet(50, norm_cfg={'type': 'BN', 'requires_grad': False})


def fused_network():
    from mmcv.cnn import fuse_conv_bn

    network = build()
    network.eval()
    return fuse_conv_bn(network)


@pytest.mark.parametrize('make', [mmdet_network, fused_network])
@torch.no_grad()
def test_networks_of_mmdet_and_with_fused_norms_are_known_too(make, fast_calls):
    stock = make()
    stock.eval()
    for one, other in zip(stock(IMAGE), speed_up(copy.deepcopy(stock))(IMAGE), strict=True):
        assert (one - other).abs().max() < 4 * EPSILON * 50 * one.abs().max()
    assert fast_calls


def training_norms(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def another_activation(network):
    for module in list(network.modules()):
        if hasattr(module, 'relu'):
            module.relu = nn.LeakyReLU(0.5)


@pytest.mark.parametrize('change', [double, training_norms, another_activation, hook_every_layer])
def test_a_changed_network_computes_as_its_classes(change, check_that_the_class_computes):
    check_that_the_class_computes(build(), [IMAGE], change)


def test_under_an_autocast_the_classes_compute(check_that_the_class_computes):
    check_that_the_class_computes(build(), [IMAGE], autocast=True)


def test_frozen_norms_keep_nothing_for_the_backward_pass():
    """The result of a convolution, which only its norm needs, is not kept."""

    def kept(network):
        sizes = {}

        def note(value):
            if value.dim() == 4 and value.shape[0] == len(IMAGE):  # maps, not weights
                sizes[value.untyped_storage().data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            network(IMAGE)
        return sum(sizes.values())

    network = build(depth=50)
    assert kept(speed_up(copy.deepcopy(network))) < 0.6 * kept(network)
