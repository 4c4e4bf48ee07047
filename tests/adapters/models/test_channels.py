"""The head takes ``in_channels`` from the built backbone: another backbone is one config entry."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_m2f.adapters.models.channels import with_in_channels
from mmseg_m2f.adapters.models.config import UnknownChannelsError
from tests.adapters import small_models

RESNET = {'type': 'ResNet', 'depth': 50, 'base_channels': 8, 'stem_channels': 8}
SWIN = {'embed_dims': 12, 'num_heads': (1, 2, 4, 8), 'depths': (1, 1, 1, 1), 'window_size': 7}
SWIN['type'] = 'SwinTransformer'
FPN = {'type': 'mmdet.FPN', 'in_channels': [5, 6, 7, 8], 'out_channels': 9, 'num_outs': 4}


class Pyramid(nn.Module):
    """A backbone of a user: four input channels, dropout, batch norm, one stage frozen."""

    def __init__(self, fails=False):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, n + 1, 3, 2, 1), nn.BatchNorm2d(n + 1), nn.Dropout(0.5))
            for n in (4, 5, 6, 7)
        )
        self.fails = fails

    def train(self, mode=True):
        super().train(mode)
        self.stages[0].eval()
        return self

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        if self.fails:
            raise RuntimeError('images must have 500 x 500 pixels')
        maps = [nn.functional.avg_pool2d(x, 2)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def build(package, backbone, head=None, **changes):
    """Build our model of a package without ``in_channels``; return it and its head."""
    pytest.importorskip(package)
    init_default_scope(package)
    model, name = small_models.segmentor(), 'decode_head'
    model['type'] = 'mmseg_m2f.SemanticSegmentor'
    if package == 'mmdet':
        model, name = small_models.detector(), 'panoptic_head'
    del model[name]['in_channels']
    model[name] = head or model[name]
    built = MODELS.build({**model, 'backbone': backbone, **changes})
    return built, getattr(built, name)


both_packages = pytest.mark.parametrize('package', ['mmseg', 'mmdet'])


@both_packages
@pytest.mark.parametrize(
    ('backbone', 'neck', 'expected'),
    [
        (RESNET, None, [32, 64, 128, 256]),
        ({**RESNET, 'norm_cfg': {'type': 'SyncBN'}}, None, [32, 64, 128, 256]),
        (SWIN, None, [12, 24, 48, 96]),
        ({'type': Pyramid}, None, [5, 6, 7, 8]),
        ({'type': Pyramid}, FPN, [9, 9, 9, 9]),
    ],
    ids=['ResNet', 'SyncBN', 'Swin', 'custom', 'with a neck'],
)
def test_another_backbone_is_one_entry(package, backbone, neck, expected):
    pytest.importorskip('mmdet' if neck else package)
    model, head = build(package, backbone, neck=neck)
    assert head.resolved_config()['in_channels'] == expected
    image = torch.zeros(1, 4 if backbone['type'] is Pyramid else 3, 64, 64)
    model.eval()
    with torch.no_grad():
        assert model(image, mode='tensor')[0].shape == (1, 10, 4)


def test_measuring_changes_nothing():
    backbone = Pyramid().train()
    modes = [module.training for module in backbone.modules()]
    assert set(modes) == {True, False}
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    assert with_in_channels({'a': 1}, backbone, None) == {'a': 1, 'in_channels': [5, 6, 7, 8]}
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@both_packages
def test_a_backbone_that_cannot_tell_is_named(package):
    message = r'not set, and Pyramid cannot tell: .*64 x 64 .*RuntimeError: images must have 500'
    with pytest.raises(UnknownChannelsError, match=message):
        build(package, {'type': Pyramid, 'fails': True})
    with pytest.raises(UnknownChannelsError, match='no sequence of maps'):
        with_in_channels({}, nn.Conv2d(3, 4, 1), None)
    with pytest.raises(UnknownChannelsError, match=r'mmseg_m2f\.SemanticSegmentor'):
        build('mmseg', RESNET, type='EncoderDecoder')


def test_channels_that_are_set_are_kept():
    head = {'type': 'FCNHead', 'in_channels': 8, 'channels': 4, 'num_classes': 3, 'in_index': 3}
    assert build('mmseg', {'type': Pyramid, 'fails': True}, head)[1].in_channels == 8
