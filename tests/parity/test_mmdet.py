"""Our detector against the one mmdet has, on copied weights and a real image."""

from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor, nn

from mmseg_m2f.checkpoints import to_ours, to_theirs
from mmseg_m2f.core import decoder as core_decoder

mmdet = pytest.importorskip('mmdet')
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

from tests.parity.parity_weights import redraw  # noqa: E402

CONFIG = '.mim/configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
PHOTO = Path(__file__).parents[2] / 'data/tiny/coco/img/val/000000000885.jpg'
NUM_THINGS, NUM_STUFF, NUM_QUERIES, NUM_HEADS = 4, 3, 50, 8
NUM_LAYERS = 3
NUM_CLASSES = NUM_THINGS + NUM_STUFF
OBJECT_MASK_THR, OVERLAP_THR = 0.3, 0.1

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # mmdet's own configuration.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


def build(model: dict) -> nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(model).eval()


def their_config() -> Config:
    model = Config.fromfile(Path(mmdet.__file__).parent / CONFIG).model
    model.data_preprocessor.batch_augments = None
    model.backbone.update(depth=18, init_cfg=None)
    sizes = {'num_things_classes': NUM_THINGS, 'num_stuff_classes': NUM_STUFF}
    model.panoptic_head.update(in_channels=[64, 128, 256, 512], num_queries=NUM_QUERIES, **sizes)
    model.panoptic_head.pixel_decoder.encoder.num_layers = NUM_LAYERS
    model.panoptic_head.transformer_decoder.num_layers = NUM_LAYERS
    model.panoptic_head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    model.panoptic_fusion_head.update(sizes)
    model.test_cfg.update(object_mask_thr=OBJECT_MASK_THR, iou_thr=OVERLAP_THR)
    return model


@pytest.fixture(scope='module')
def models() -> tuple[nn.Module, nn.Module]:
    """Ours and theirs on a ResNet-18, both in test mode."""
    torch.manual_seed(0)
    theirs = build(their_config())
    redraw(theirs)
    ours = build(
        {
            'type': 'mmseg_m2f.Mask2Former',
            'data_preprocessor': their_config().data_preprocessor,
            'backbone': their_config().backbone,
            'panoptic_head': {
                'type': 'mmseg_m2f.Mask2FormerUniversalHead',
                'num_classes': NUM_CLASSES,
                'thing_ids': list(range(NUM_THINGS)),
                'in_channels': [64, 128, 256, 512],
                'num_queries': NUM_QUERIES,
                'pixel_decoder': {'num_layers': NUM_LAYERS},
                'decoder': {'num_layers': NUM_LAYERS},
            },
            'test_cfg': {'object_mask_thr': OBJECT_MASK_THR, 'overlap_thr': OVERLAP_THR},
        }
    )
    ours.load_state_dict(to_ours(theirs.state_dict(), 'mmdet', 'panoptic_head'))
    return ours, theirs


def photo() -> dict[str, list]:
    """A real image, seen at about half the size of its file."""
    image = Image.open(PHOTO)
    small = image.resize((250, 166), Image.Resampling.BILINEAR)
    meta = {'img_shape': (166, 250), 'ori_shape': image.size[::-1], 'img_path': str(PHOTO)}
    tensor = torch.from_numpy(np.array(small)[..., ::-1].copy()).permute(2, 0, 1)
    return {'inputs': [tensor], 'data_samples': [DetDataSample(metainfo=meta)]}


def test_key_map_round_trip(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = models
    back, expected = to_theirs(ours.state_dict(), 'mmdet'), theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


@torch.no_grad()
def test_logits(models: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their attention masks are injected: a logit at the threshold may fall to either side."""
    ours, theirs = models
    inputs = theirs.data_preprocessor(photo())
    blocked: list[Tensor] = []
    forward_head = theirs.panoptic_head._forward_head

    def note_mask(*args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
        output = forward_head(*args, **kwargs)
        blocked.append(output[2].unflatten(0, (-1, NUM_HEADS))[:, :1])
        return output

    monkeypatch.setattr(theirs.panoptic_head, '_forward_head', note_mask)
    maps = theirs.extract_feat(inputs['inputs'])
    their_classes, their_masks = theirs.panoptic_head(maps, inputs['data_samples'])
    may_attend = iter([~mask | mask.all(-1, keepdim=True) for mask in blocked])
    monkeypatch.setattr(core_decoder, 'attention_mask', lambda *_: next(may_attend))
    class_logits, mask_logits = ours(inputs['inputs'], mode='tensor')
    assert_in_range(class_logits, their_classes[-1])
    assert_in_range(mask_logits, their_masks[-1])


def assert_in_range(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the range of the prediction."""
    value_range = theirs.max() - theirs.min()
    assert value_range > 1
    assert (ours - theirs).abs().max() <= 1e-4 * value_range


def standardised(logits: Tensor) -> Tensor:
    """Over the queries, which random weights hardly tell apart."""
    return (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)


@pytest.fixture(scope='module')
def predictions(models: tuple[nn.Module, nn.Module]) -> tuple[DetDataSample, DetDataSample]:
    """Both detectors' results from our logits, spread so that various segments survive."""
    ours, theirs = models
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        inputs = ours.data_preprocessor(photo())
        class_logits, mask_logits = ours(**inputs, mode='tensor')
        class_logits = 3 * standardised(class_logits)
        mask_logits = 4 * standardised(mask_logits) - 4
        for model, output in (
            (ours, (class_logits, mask_logits)),
            (theirs, ([class_logits], [mask_logits])),
        ):
            patch.setattr(model.panoptic_head, 'forward', lambda *_, output=output: output)
        [our_sample] = ours.test_step(photo())
        [their_sample] = theirs.test_step(photo())
    return our_sample, their_sample


def segments(sample: DetDataSample) -> set[tuple[int, int, bytes]]:
    """(class, is thing, pixels) of each segment, void included."""
    encoded = sample.pred_panoptic_seg.sem_seg[0]
    return {
        (value % 1000, value >= 1000, (encoded == value).numpy().tobytes())
        for value in encoded.unique().tolist()
    }


def test_panoptic(predictions: tuple[DetDataSample, DetDataSample]) -> None:
    """Segments as sets: mmdet counts a thing that got no pixel, so its numbers may have gaps."""
    ours, theirs = map(segments, predictions)
    assert ours == theirs
    assert sum(is_thing for _, is_thing, _ in ours) >= 2
    assert {label for label, is_thing, _ in ours if not is_thing} - {NUM_CLASSES}


def test_instances(predictions: tuple[DetDataSample, DetDataSample]) -> None:
    ours, theirs = (sample.pred_instances for sample in predictions)
    assert len(ours) > 20
    order = theirs.scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(ours.scores, theirs.scores[order], rtol=1e-5, atol=1e-6)
    assert instance_set(ours) == instance_set(theirs)


def instance_set(instances: mmengine.structures.InstanceData) -> list[tuple]:
    """Labels, boxes and masks, in an order of their own."""
    fields = (instances.labels, instances.bboxes, instances.masks)
    return sorted(
        (label.item(), tuple(box.tolist()), mask.numpy().tobytes())
        for label, box, mask in zip(*fields, strict=True)
    )
