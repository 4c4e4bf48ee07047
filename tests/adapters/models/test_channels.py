"""The head takes ``in_channels`` from the built backbone: another backbone is one config entry."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_m2f.adapters.models.channels import measure_channels
from mmseg_m2f.adapters.models.config import UnknownChannelsError
from tests.adapters import small_models

RESNET = {'type': 'ResNet', 'depth': 50, 'base_channels': 8, 'stem_channels': 8}
SWIN = {
    'type': 'SwinTransformer',
    'embed_dims': 12,
    'num_heads': (1, 2, 4, 8),
    'depths': (1, 1, 1, 1),
    'window_size': 7,
}


class Pyramid(nn.Module):
    """A backbone of a user: four input channels, dropout, batch norm, one stage frozen."""

    def __init__(self, widths=(5, 6, 7, 8), fails=False):
        super().__init__()
        channels = (4, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.Dropout(0.5)
            )
            for i, o in zip(channels, widths, strict=False)
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
        maps = []
        x = nn.functional.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def segmentor(backbone, **changes):
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    model = small_models.segmentor()
    del model['decode_head']['in_channels']
    return MODELS.build(
        {**model, 'type': 'mmseg_m2f.SemanticSegmentor', 'backbone': backbone, **changes}
    ).decode_head


def detector(backbone, **changes):
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    model = small_models.detector()
    del model['panoptic_head']['in_channels']
    return MODELS.build({**model, 'backbone': backbone, **changes}).panoptic_head


BUILDERS = [pytest.param(segmentor, id='mmseg'), pytest.param(detector, id='mmdet')]


@pytest.mark.parametrize('build', BUILDERS)
@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        (RESNET, [32, 64, 128, 256]),
        ({**RESNET, 'norm_cfg': {'type': 'SyncBN'}}, [32, 64, 128, 256]),
        (SWIN, [12, 24, 48, 96]),
        ({'type': Pyramid}, [5, 6, 7, 8]),
    ],
    ids=['ResNet', 'SyncBN', 'Swin', 'custom'],
)
def test_another_backbone_is_one_entry(build, backbone, expected):
    head = build(backbone)
    assert head.resolved_config()['in_channels'] == expected
    maps = [torch.zeros(1, width, 16 >> i, 16 >> i) for i, width in enumerate(expected)]
    assert head(maps)[0].shape == (1, 10, 4)


@pytest.mark.parametrize('build', BUILDERS)
def test_a_neck_decides_what_the_head_gets(build):
    pytest.importorskip('mmdet')
    neck = {'type': 'mmdet.FPN', 'in_channels': [5, 6, 7, 8], 'out_channels': 9, 'num_outs': 4}
    assert build({'type': Pyramid}, neck=neck).resolved_config()['in_channels'] == [9] * 4


def test_measuring_changes_nothing():
    backbone = Pyramid().train()
    modes = [module.training for module in backbone.modules()]
    assert True in modes
    assert False in modes
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    assert measure_channels(backbone) == [5, 6, 7, 8]
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize('build', BUILDERS)
def test_a_backbone_that_cannot_tell_is_named(build):
    message = r'not set, and Pyramid cannot tell: .*64 x 64 .*RuntimeError: images must have 500'
    with pytest.raises(UnknownChannelsError, match=message):
        build({'type': Pyramid, 'fails': True})


class OneMap(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)


def test_a_backbone_of_one_map_cannot_tell():
    with pytest.raises(UnknownChannelsError, match='no sequence of maps'):
        measure_channels(OneMap())


def test_channels_that_are_set_are_kept():
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    config = {**small_models.segmentor(), 'type': 'mmseg_m2f.SemanticSegmentor'}
    config['decode_head']['in_channels'] = [1, 2, 3, 4]
    config['backbone'] = {'type': Pyramid, 'fails': True}
    assert MODELS.build(config).decode_head.resolved_config()['in_channels'] == [1, 2, 3, 4]


def test_another_head_is_left_alone():
    head = {'type': 'FCNHead', 'in_channels': 8, 'channels': 4, 'num_classes': 3, 'in_index': 3}
    assert segmentor({'type': Pyramid, 'fails': True}, decode_head=head).in_channels == 8


def test_mmsegs_segmentor_does_not_know_them():
    with pytest.raises(UnknownChannelsError, match=r'mmseg_m2f\.SemanticSegmentor'):
        segmentor(RESNET, type='EncoderDecoder')
