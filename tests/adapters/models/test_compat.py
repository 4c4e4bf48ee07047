"""Both heads take the switches of ``compat``."""

import math

import pytest
import torch

from mmseg_m2f import core
from mmseg_m2f.registry import MODELS
from tests.reduced import HEAD

OFFICIAL = {'init': 'official', 'num_masks_mode': 'official'}
OFFICIAL |= {'keep_empty_gt': True, 'panoptic_mask_intersection': True}
MMDET = {'init': 'mmdet', 'num_masks_mode': 'mmdet'}
MMDET |= {'keep_empty_gt': False, 'panoptic_mask_intersection': False}
both_heads = pytest.mark.parametrize('name', ['Mask2FormerHead', 'Mask2FormerUniversalHead'])


def build_head(name='Mask2FormerUniversalHead', **compat):
    torch.manual_seed(0)
    sizes = {'num_classes': 3, 'in_channels': [8, 16, 32, 64]}
    return MODELS.build({'type': f'mmseg_m2f.{name}', **sizes, **HEAD, 'compat': compat})


@both_heads
def test_the_record_tells_the_switches_and_builds_the_head_again(name, warned):
    assert build_head(name, _delete_=True).resolved_config()['compat'] == OFFICIAL
    assert not warned
    head = build_head(name, **MMDET)
    ignored = ['compat.panoptic_mask_intersection is ignored'] * (name == 'Mask2FormerHead')
    assert [message.partition(':')[0] for message in warned] == ignored
    config = head.resolved_config()
    assert config['compat'] == MMDET
    again = MODELS.build({'type': f'mmseg_m2f.{name}', **config})
    assert again.resolved_config() == config
    shapes = [{k: v.shape for k, v in one.state_dict().items()} for one in (again, head)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('mode', ['official', 'mmdet'])
def test_init_reaches_encoder_and_decoder(mode):
    head = build_head(init=mode)
    for layer in (*head.pixel_decoder.layers, *head.decoder.layers):
        weight = layer.ffn.linear1.weight
        # A uniform distribution has a bound, the normal one does not.
        is_normal = weight.abs().max().item() > math.sqrt(6 / sum(weight.shape))
        assert is_normal == (mode == 'mmdet')


def losses_of(head, targets):
    maps = [torch.ones(2, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    torch.manual_seed(1)
    return head._losses(maps, targets, [None] * len(targets))


def square():
    """Return a target with a square and a mask without pixels."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :24, :24] = True
    return core.MaskTarget(torch.tensor([1, 2]), masks)


def test_num_masks_mode_counts_an_image_of_nothing():
    targets = [square(), core.MaskTarget(*(part[:0] for part in square()))]
    official = losses_of(build_head(), targets)
    theirs = losses_of(build_head(num_masks_mode='mmdet'), targets)
    for name, value in official.items():
        torch.testing.assert_close(theirs[name], value * (1 if 'cls' in name else 2 / 3))


def test_keep_empty_gt_decides_whether_an_empty_mask_is_to_be_found():
    one = core.MaskTarget(*(part[:1] for part in square()))
    kept = losses_of(build_head(), [square(), square()])
    dropped = losses_of(build_head(keep_empty_gt=False), [square(), square()])
    assert dropped == losses_of(build_head(), [one, one])
    assert all(kept[name] != dropped[name] for name in kept)


@pytest.mark.parametrize(('ends_with_mask', 'expected'), [(True, [3, 1000]), (False, [1000])])
def test_segments_keep_what_they_lead_beyond_their_masks(ends_with_mask, expected):
    head = build_head(panoptic_mask_intersection=ends_with_mask)
    geometry = core.ImageGeometry((4, 8), (4, 8), (4, 8))
    class_logits = torch.tensor([[9.0, 0, 0, 0], [9, 0, 0, 0]])
    mask_logits = torch.tensor([[[3.0, -1.0]], [[-3, -2]]])
    config = core.PostprocessConfig(semantic_on=False, instance_on=False, overlap_thr=0.1)
    results = head._results((class_logits, mask_logits, geometry), config)
    assert results['pred_panoptic_seg'].sem_seg.unique().tolist() == expected
