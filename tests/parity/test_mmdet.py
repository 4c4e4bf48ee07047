"""Our detector against mmdet's: results of the same logits, and initial weights."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f import core
from mmseg_m2f.adapters.models.samples import encode_panoptic
from mmseg_m2f.checkpoints import to_ours

pytest.importorskip('mmdet')
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

from tests.parity.parity_weights import redraw
from tests.parity.stock_heads import segments
from tests.parity.trajectories import NUM_STUFF, NUM_THINGS, build, our_model, stock_model

PHOTO = Path(__file__).parents[2] / 'data/tiny/coco/img/val/000000000885.jpg'
NUM_CLASSES = NUM_THINGS + NUM_STUFF


def predictions() -> list[DetDataSample]:
    """Both detectors' results from our logits, spread so that various segments survive."""
    init_default_scope('mmdet')
    stock, own = stock_model(), our_model(panoptic_mask_intersection=True)
    stock.panoptic_head.num_queries = own['panoptic_head']['num_queries'] = 50
    stock.test_cfg.update(object_mask_thr=0.3, iou_thr=0.1)
    own['test_cfg'] = {'object_mask_thr': 0.3, 'overlap_thr': 0.1}
    theirs, ours = MODELS.build(stock).eval(), MODELS.build(own).eval()
    redraw(theirs)
    ours.load_state_dict(to_ours(theirs.state_dict(), 'mmdet', 'panoptic_head'))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        classes, masks = ours(**ours.data_preprocessor(photo()), mode='tensor')
        classes, masks = 3 * standardised(classes), 4 * standardised(masks) - 4
        patch.setattr(ours.panoptic_head, 'forward', lambda *_: (classes, masks))
        patch.setattr(theirs.panoptic_head, 'forward', lambda *_: ([classes], [masks]))
        return [model.test_step(photo())[0] for model in (ours, theirs)]


def photo() -> dict[str, list]:
    """A real image, seen at about half the size of its file."""
    image = Image.open(PHOTO)
    small = image.resize((250, 166), Image.Resampling.BILINEAR)
    meta = {'img_shape': (166, 250), 'ori_shape': image.size[::-1], 'img_path': str(PHOTO)}
    tensor = torch.from_numpy(np.array(small)[..., ::-1].copy()).permute(2, 0, 1)
    return {'inputs': [tensor], 'data_samples': [DetDataSample(metainfo=meta)]}


def standardised(logits: Tensor) -> Tensor:
    """Over the queries, which random weights hardly tell apart."""
    return (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)


def test_results_of_an_image() -> None:
    ours, theirs = predictions()
    found = segments(ours.pred_panoptic_seg.sem_seg[0])
    assert found == segments(theirs.pred_panoptic_seg.sem_seg[0])
    assert sum(is_thing for _, is_thing, _ in found) >= 2
    # Stuff beside void.
    assert {label for label, is_thing, _ in found if not is_thing} - {NUM_CLASSES}
    ours, theirs = ours.pred_instances, theirs.pred_instances
    assert len(ours) > 20
    order = theirs.scores.argsort(descending=True, stable=True)
    # A mean over some 1e5 pixels, which are summed pairwise in float32.
    torch.testing.assert_close(ours.scores, theirs.scores[order], rtol=1e-5, atol=1e-6)
    assert instance_set(ours) == instance_set(theirs)


def instance_set(instances: InstanceData) -> list[tuple]:
    """Labels, boxes and masks, in an order of their own."""
    fields = (instances.labels, instances.bboxes, instances.masks)
    return sorted(
        (label.item(), tuple(box.tolist()), mask.numpy().tobytes())
        for label, box, mask in zip(*fields, strict=True)
    )


@pytest.mark.parametrize('within_masks', [True, False])
def test_panoptic_segments_with_and_without_the_intersection(within_masks: bool) -> None:
    """``filter_low_score`` of theirs is our ``panoptic_mask_intersection``."""
    config = core.PostprocessConfig(object_mask_thr=0.3, overlap_thr=0.4)
    test_cfg = {'object_mask_thr': 0.3, 'iou_thr': 0.4, 'filter_low_score': within_masks}
    theirs = MaskFormerFusionHead(NUM_THINGS, NUM_STUFF, test_cfg=test_cfg)
    is_thing, size = torch.arange(NUM_CLASSES) < NUM_THINGS, (24, 32)
    seen = 0
    for seed in range(60):
        torch.manual_seed(seed)
        class_logits = 3 * torch.randn(12, NUM_CLASSES + 1)
        masks = F.interpolate(2 * torch.randn(12, 1, 3, 4) - 1, size, mode='bilinear')[:, 0]
        geometry = core.ImageGeometry(size, size, size)
        panoptic = core.panoptic(
            class_logits, masks, geometry, is_thing, config, within_masks=within_masks
        )
        ours = segments(encode_panoptic(panoptic, NUM_CLASSES).sem_seg)
        assert ours == segments(theirs.panoptic_postprocess(class_logits, masks).sem_seg)
        seen += len(ours)
    assert seen > 200


def initial_matrices(init: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the head's weights of more than one dimension that are not 0: ours and theirs."""
    theirs = to_ours(build(stock_model()).state_dict(), 'mmdet', 'panoptic_head')
    return {
        name.removeprefix('panoptic_head.'): (value, theirs[name])
        for name, value in build(our_model(init=init)).state_dict().items()
        if name.startswith('panoptic_head.') and value.dim() > 1 and value.abs().max() > 0
    }


def is_normal(value: Tensor) -> bool:
    """Decide by the fourth moment: 3 variances squared for a normal law, 1.8 for a uniform one."""
    return ((value**4).mean() / (value**2).mean() ** 2).item() > 2.4


def test_init_has_their_laws_and_variances() -> None:
    matrices = initial_matrices('mmdet')
    assert len(matrices) > 40
    for name, (ours, theirs) in matrices.items():
        assert is_normal(ours) == is_normal(theirs), name
        bound = 6 / math.sqrt(ours.numel())
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=bound)
    assert {is_normal(ours) for ours, _ in matrices.values()} == {True, False}


def test_official_init_differs_from_theirs_in_the_law_of_attention_and_feed_forward_only() -> None:
    matrices = initial_matrices('official')
    differing = {name for name, pair in matrices.items() if len(set(map(is_normal, pair))) > 1}
    attention = [f'{k}_attn.{n}' for k in ('cross', 'self') for n in ('in_proj_', 'out_proj.')]
    feed_forward = ['ffn.linear1.', 'ffn.linear2.']
    names = {'decoder': attention + feed_forward, 'pixel_decoder': feed_forward}
    assert differing == {
        f'{part}.layers.{layer}.{name}weight'
        for part in names
        for layer in range(3)
        for name in names[part]
    }
