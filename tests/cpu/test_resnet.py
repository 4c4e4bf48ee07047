"""Residual networks of mmseg and mmdet with faster blocks, against the stock ones."""

import copy

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu import onednn, resnet, speed_up, winograd

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


def pair(**settings):
    stock = build(**settings)
    return stock, speed_up(copy.deepcopy(stock))


@pytest.fixture
def fast_calls(monkeypatch):
    """Counts the blocks that ran in the faster way."""
    calls = []
    original = resnet._run_block
    monkeypatch.setattr(resnet, '_run_block', lambda *args: calls.append(1) or original(*args))
    return calls


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
    stock, ours = pair(**settings)
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


def test_mmdet_s_network_is_known_too(fast_calls):
    mmdet_backbones = pytest.importorskip('mmdet.models.backbones')
    torch.manual_seed(0)
    stock = mmdet_backbones.ResNet(50, norm_cfg={'type': 'BN', 'requires_grad': False})
    stock.eval()
    ours = speed_up(copy.deepcopy(stock))
    with torch.no_grad():
        for one, other in zip(stock(IMAGE), ours(IMAGE), strict=True):
            assert (one - other).abs().max() < 4 * EPSILON * 50 * one.abs().max()
    assert len(fast_calls) == 16


def test_norms_that_were_fused_before_are_known(fast_calls):
    from mmcv.cnn import fuse_conv_bn

    stock, _ = pair()
    stock = fuse_conv_bn(stock.eval() or stock)
    ours = speed_up(copy.deepcopy(stock))
    with torch.no_grad():
        for one, other in zip(stock(IMAGE), ours(IMAGE), strict=True):
            assert (one - other).abs().max() < 4 * EPSILON * 18 * one.abs().max()
    assert fast_calls


def _double(network):
    network.double()


def _training_norms(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def _another_activation(network):
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            block.relu = nn.LeakyReLU(0.5)


def _hooks_inside(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize('change', [_double, _training_norms, _another_activation, _hooks_inside])
def test_a_changed_network_computes_as_its_classes(change, fast_calls):
    stock, ours = pair()
    for network in (stock, ours):
        change(network)
    x = IMAGE.to(stock.conv1.weight.dtype)
    with torch.no_grad():
        for one, other in zip(stock(x), ours(x), strict=True):
            assert torch.equal(one, other)
    assert not fast_calls


def test_under_an_autocast_the_classes_compute(fast_calls):
    stock, ours = pair()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for one, other in zip(stock(IMAGE), ours(IMAGE), strict=True):
            assert torch.equal(one, other)
    assert not fast_calls


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

    stock, ours = pair(depth=50)
    assert kept(ours) < 0.6 * kept(stock)
