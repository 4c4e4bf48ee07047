"""The switches of ``compat`` against what MMDetection does itself."""

import math

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.seg_heads import MaskFormerFusionHead
from torch.nn import functional as F

from mmseg_m2f import core
from mmseg_m2f.adapters.models.samples import encode_panoptic
from mmseg_m2f.checkpoints import to_ours
from tests.parity.stock_heads import segments
from tests.parity.trajectories import build, our_model, stock_model

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # mmdet's own configuration.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
NUM_THINGS, NUM_STUFF = 3, 2
SAME_SIZE = core.ImageGeometry((24, 32), (24, 32), (24, 32))
IS_THING = torch.arange(NUM_THINGS + NUM_STUFF) < NUM_THINGS


@pytest.mark.parametrize('within_masks', [True, False])
def test_panoptic_segments_with_and_without_the_intersection(within_masks):
    """``filter_low_score`` of theirs is our ``panoptic_mask_intersection``."""
    config = core.PostprocessConfig(object_mask_thr=0.3, overlap_thr=0.4)
    theirs = MaskFormerFusionHead(
        NUM_THINGS,
        NUM_STUFF,
        test_cfg={'object_mask_thr': 0.3, 'iou_thr': 0.4, 'filter_low_score': within_masks},
    )
    seen = 0
    for seed in range(60):
        torch.manual_seed(seed)
        class_logits = 3 * torch.randn(12, NUM_THINGS + NUM_STUFF + 1)
        coarse = 2 * torch.randn(12, 1, 3, 4) - 1
        logits = F.interpolate(coarse, (24, 32), mode='bilinear')[:, 0]
        panoptic = core.panoptic(
            class_logits, logits, SAME_SIZE, IS_THING, config, within_masks=within_masks
        )
        ours = segments(encode_panoptic(panoptic, len(IS_THING)).sem_seg)
        assert ours == segments(theirs.panoptic_postprocess(class_logits, logits).sem_seg)
        seen += len(ours)
    assert seen > 200


def is_normal(value):
    """Decide by the fourth moment: 3 variances squared for a normal law, 1.8 for a uniform one."""
    return ((value**4).mean() / (value**2).mean() ** 2).item() > 2.4


def test_init_has_their_laws_and_variances():
    theirs = to_ours(build(stock_model()).state_dict(), 'mmdet', 'panoptic_head')
    ours = build(our_model(init='mmdet')).state_dict()
    matrices = [
        name
        for name, value in ours.items()
        if name.startswith('panoptic_head.') and value.dim() > 1 and value.abs().max() > 0
    ]
    assert len(matrices) > 40
    laws = set()
    for name in matrices:
        one, other = ours[name], theirs[name]
        assert is_normal(one) == is_normal(other), name
        assert one.std().item() == pytest.approx(other.std().item(), rel=6 / math.sqrt(one.numel()))
        laws.add(is_normal(one))
    assert laws == {True, False}


def test_official_init_differs_from_theirs_in_the_law_of_attention_and_feed_forward_only():
    theirs = to_ours(build(stock_model()).state_dict(), 'mmdet', 'panoptic_head')
    ours = build(our_model(init='official')).state_dict()
    differing = {
        name.removeprefix('panoptic_head.')
        for name, value in ours.items()
        if name.startswith('panoptic_head.')
        and value.dim() > 1
        and value.abs().max() > 0
        and is_normal(value) != is_normal(theirs[name])
    }
    attention = {
        f'decoder.layers.{i}.{kind}_attn.{name}'
        for i in range(3)
        for kind in ('cross', 'self')
        for name in ('in_proj_weight', 'out_proj.weight')
    }
    feed_forward = {
        f'{part}.layers.{i}.ffn.linear{n}.weight'
        for part in ('decoder', 'pixel_decoder')
        for i in range(3)
        for n in (1, 2)
    }
    assert differing == attention | feed_forward
