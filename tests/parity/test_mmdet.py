"""Our detector against the one mmdet has: what becomes of one set of logits, on a real image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor

from mmseg_m2f.checkpoints import to_ours

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

from tests.parity.parity_weights import redraw
from tests.parity.stock_heads import segments
from tests.parity.trajectories import NUM_STUFF, NUM_THINGS, our_model, stock_model

PHOTO = Path(__file__).parents[2] / 'data/tiny/coco/img/val/000000000885.jpg'
NUM_CLASSES = NUM_THINGS + NUM_STUFF

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # mmdet's own configuration.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


@pytest.fixture(scope='module')
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


def test_panoptic(predictions: list[DetDataSample]) -> None:
    ours, theirs = (segments(sample.pred_panoptic_seg.sem_seg[0]) for sample in predictions)
    assert ours == theirs
    assert sum(is_thing for _, is_thing, _ in ours) >= 2
    # Stuff beside void.
    assert {label for label, is_thing, _ in ours if not is_thing} - {NUM_CLASSES}


def test_instances(predictions: list[DetDataSample]) -> None:
    ours, theirs = (sample.pred_instances for sample in predictions)
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
