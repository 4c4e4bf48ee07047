"""Both heads take the switches of ``compat``."""

import logging
import math

import pytest
import torch
from mmengine.logging import MMLogger

from mmseg_m2f import core
from mmseg_m2f.registry import MODELS
from tests.reduced import HEAD

MMDET = {
    'init': 'mmdet',
    'num_masks_mode': 'mmdet',
    'keep_empty_gt': False,
    'panoptic_mask_intersection': False,
}
HEADS = ('Mask2FormerHead', 'Mask2FormerUniversalHead')


def build_head(name='Mask2FormerUniversalHead', **keys):
    sizes = {'num_classes': 3, 'in_channels': [8, 16, 32, 64]}
    return MODELS.build({'type': f'mmseg_m2f.{name}', **sizes, **HEAD, **keys})


@pytest.mark.parametrize('name', HEADS)
def test_the_record_tells_the_switches(name):
    official = build_head(name).resolved_config()['compat']
    assert official == {
        'init': 'official',
        'num_masks_mode': 'official',
        'keep_empty_gt': True,
        'panoptic_mask_intersection': True,
    }
    head = build_head(name, compat=MMDET)
    config = head.resolved_config()
    assert config['compat'] == MMDET
    again = MODELS.build({'type': f'mmseg_m2f.{name}', **config})
    assert again.resolved_config() == config
    shapes = [{k: v.shape for k, v in one.state_dict().items()} for one in (again, head)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize(
    ('compat', 'message'),
    [
        (
            {'init_mode': 'mmdet', 'init': 'mmdet'},
            r"compat does not know \['init_mode'\]; known keys: \['init', 'num_mas",
        ),
        (
            {'pad_value': 0, 'crop_offset': 'independent'},
            r"crop_offset is FixedSizeCrop\(offsets='shared' or 'independent'\); pad_value is",
        ),
        ({'init': 'xavier'}, r"compat\.init must be one of .* got 'xavier'"),
    ],
)
def test_wrong_switches_say_what_is_allowed(name, compat, message):
    with pytest.raises(ValueError, match=message):
        build_head(name, compat=compat)


def largest_over_bound(module):
    weight = module.linear1.weight
    return (weight.abs().max() / math.sqrt(6 / sum(weight.shape))).item()


def test_init_reaches_encoder_and_decoder():
    for mode, is_normal in (('official', False), ('mmdet', True)):
        head = build_head(compat={'init': mode})
        for layer in (*head.pixel_decoder.layers, *head.decoder.layers):
            assert (largest_over_bound(layer.ffn) > 1) is is_normal


def losses_of(head, targets):
    maps = [torch.ones(2, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    torch.manual_seed(1)
    return head._losses(maps, targets, [None] * len(targets))


def square(size=24):
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :size, :size] = True
    return core.MaskTarget(torch.tensor([1, 2]), masks)


NOTHING = core.MaskTarget(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=bool))


def same_weights(**compat):
    torch.manual_seed(0)
    return build_head(compat=compat)


def test_num_masks_mode_counts_an_image_of_nothing():
    targets = [square(), NOTHING]
    official = losses_of(same_weights(), targets)
    theirs = losses_of(same_weights(num_masks_mode='mmdet'), targets)
    for name, value in official.items():
        factor = 1 if 'cls' in name else 2 / 3
        torch.testing.assert_close(theirs[name], factor * value)


def test_keep_empty_gt_decides_whether_an_empty_mask_is_to_be_found():
    one = core.MaskTarget(*(part[:1] for part in square()))
    kept = losses_of(same_weights(), [square(), square()])
    dropped = losses_of(same_weights(keep_empty_gt=False), [square(), square()])
    assert dropped == losses_of(same_weights(), [one, one])
    assert all(kept[name] != dropped[name] for name in kept)


def test_a_semantic_head_says_that_it_ignores_the_panoptic_switch(monkeypatch):
    said = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'log', lambda level, message: said.append((level, message)))
    for compat in ({}, {'panoptic_mask_intersection': False}):
        build_head('Mask2FormerHead', compat=compat)
    [warning] = [message for level, message in said if level == logging.WARNING]
    assert warning.startswith('compat.panoptic_mask_intersection is ignored')


def test_segments_keep_what_they_lead_beyond_their_masks():
    head = same_weights(panoptic_mask_intersection=False).eval()
    geometry = core.ImageGeometry((4, 8), (4, 8), (4, 8))
    class_logits = torch.tensor([[9.0, 0, 0, 0], [9, 0, 0, 0]])
    mask_logits = torch.tensor([[[3.0, -1.0]], [[-3, -2]]])
    config = core.PostprocessConfig(semantic_on=False, instance_on=False, overlap_thr=0.1)
    results = head._results(class_logits, mask_logits, geometry, config)
    assert results['pred_panoptic_seg'].sem_seg.unique().tolist() == [1000]
    head = same_weights().eval()
    results = head._results(class_logits, mask_logits, geometry, config)
    assert results['pred_panoptic_seg'].sem_seg.unique().tolist() == [3, 1000]
