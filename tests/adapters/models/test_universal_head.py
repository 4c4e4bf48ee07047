"""The detector inside mmdet: losses, predictions, edge cases, errors."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

structures = pytest.importorskip('mmdet.structures')
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402

from mmseg_m2f.adapters.metrics.sample_fields import instances_of  # noqa: E402
from mmseg_m2f.core import NonFinitePredictionError, PostprocessConfig  # noqa: E402
from tests.adapters import small_models  # noqa: E402
from tests.parity.parity_weights import tell_queries_apart  # noqa: E402
from tests.reduced import HEAD  # noqa: E402

FIELDS = {'semantic_on': 'pred_sem_seg', 'instance_on': 'pred_instances'}
FIELDS['panoptic_on'] = 'pred_panoptic_seg'
# Thresholds at which segments of random weights survive.
SURE = {'object_mask_thr': 0.3, 'overlap_thr': 0.2}


def build_detector(num_classes=5, test_cfg=None, **head):
    init_default_scope('mmdet')
    model = small_models.detector()
    model['data_preprocessor'].update(**small_models.NORMALIZED, pad_size_divisor=32)
    model['panoptic_head'].update({**HEAD, 'num_classes': num_classes, **head})
    return MODELS.build({**model, 'test_cfg': test_cfg})


def build_sure_detector(**head):
    """Build a detector with segments of several classes in the photo."""
    return tell_queries_apart(build_detector(num_queries=20, **head), small_models.photo())


def noise_image(size=(40, 60), num_targets=3, num_classes=5, seed=0):
    """Return an image of noise with random rectangles, in mmdet's own layout."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((num_targets, *size), np.uint8)
    for mask in masks:
        top, left = (generator.integers(0, length - 8) for length in size)
        mask[top : top + 8, left : left + 8] = 1
    labels = torch.from_numpy(generator.integers(0, num_classes, num_targets))
    meta = {'img_path': f'street_{seed}.jpg', 'img_shape': size, 'ori_shape': (2 * size[0], 90)}
    sample = structures.DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(labels=labels, masks=BitmapMasks(masks, *size))
    return torch.from_numpy(generator.integers(0, 256, (3, *size), np.uint8)), sample


def batch(images):
    inputs, samples = zip(*images, strict=True)
    return {'inputs': list(inputs), 'data_samples': list(samples)}


def two_images(num_targets=(3, 3), num_classes=5):
    images = zip(num_targets, range(2), strict=True)
    return batch([noise_image((40, 60), n, num_classes, seed) for n, seed in images])


def losses_of(model, data):
    return model(**model.data_preprocessor(data, training=True), mode='loss')


@torch.no_grad()
def predict(model, data=None, **test_cfg):
    model.eval()
    model.test_cfg = test_cfg or None
    return model.test_step(data or small_models.photo())


def test_loss_names_parameters_and_logits():
    model = build_detector()
    losses = losses_of(model, two_images())
    names = {f'{p}loss_{n}' for p in ('d0.', 'd1.', '') for n in ('cls', 'mask', 'dice')}
    assert set(losses) == names
    assert {name.split('.')[0] for name in model.state_dict()} == {'backbone', 'panoptic_head'}
    assert not [name for name in model.state_dict() if 'is_thing' in name]
    with torch.no_grad():
        class_logits, mask_logits = model(**model.data_preprocessor(two_images()), mode='tensor')
    assert class_logits.shape == (2, 8, 6)
    assert mask_logits.shape == (2, 8, 16, 16)


# Settings of the head, and the numbers of targets of two images.
@pytest.mark.parametrize(
    ('settings', 'num_targets'),
    [
        ({'num_classes': 1}, (3, 3)),
        ({'num_queries': 20}, (3, 3)),
        ({}, (0, 0)),
        ({}, (0, 4)),
        ({'num_queries': 100}, (300, 300)),
        ({'thing_ids': []}, (3, 3)),
    ],
    ids=str,
)
def test_edge_cases_train_and_predict(settings, num_targets):
    data = two_images(num_targets, settings.get('num_classes', 5))
    check_training_and_prediction(build_detector(**settings), data)


@pytest.mark.cuda
def test_trains_and_predicts_on_a_gpu():
    check_training_and_prediction(build_detector(thing_ids=[1, 3]).cuda(), two_images())


def check_training_and_prediction(model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        total, _ = model.parse_losses(losses_of(model, data))
        optimizer.zero_grad()
        total.backward()
        assert torch.isfinite(total)
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
    head = model.panoptic_head
    limit = min(100, head.num_queries * head.num_classes) * bool(head.is_thing.any())
    for sample in predict(model, data, object_mask_thr=0.0):
        size, found = sample.ori_shape[:2], sample.pred_instances
        assert len(found) == limit if head.is_thing.all() else len(found) <= limit
        assert found.masks.shape == (len(found), *size)
        assert found.masks.dtype == torch.bool
        assert torch.isfinite(found.scores).all()
        assert sample.pred_sem_seg.sem_seg.shape == (1, *size)
        assert sample.pred_sem_seg.sem_seg.dtype == torch.int64
        panoptic = sample.pred_panoptic_seg.sem_seg
        assert panoptic.shape == (1, *size)
        assert (panoptic % 1000 <= head.num_classes).all()


def test_each_output_is_the_same_whichever_others_are_on():
    model = build_sure_detector(thing_ids=[4, 1])
    [everything] = predict(model, **SURE)
    encoded = everything.pred_panoptic_seg.sem_seg
    assert (encoded >= 1000).any(), 'no thing survived: the test would show nothing'
    assert ((encoded < 1000) & (encoded != 5)).any(), 'no stuff survived'
    assert len(everything.pred_instances) > 0
    for flags in itertools.product([True, False], repeat=3):
        if not any(flags):
            continue
        [found] = predict(model, **SURE, **dict(zip(FIELDS, flags, strict=True)))
        assert [field in found for field in FIELDS.values()] == list(flags)
        for field in itertools.compress(FIELDS.values(), flags):
            one, other = found.get(field), everything.get(field)
            assert set(one.keys()) == set(other.keys())
            assert all(torch.equal(value, other.get(key)) for key, value in one.items())


def test_images_of_different_sizes_are_treated_alone():
    """The padded sizes are equal: an image alone is the same input of the network."""
    model = build_sure_detector()
    images = [noise_image((50, 90), 2, seed=1), noise_image((60, 70), 2, seed=2)]
    together = predict(model, batch(images), **SURE)
    for expected, image in zip(together, images, strict=True):
        [alone] = predict(model, batch([image]), **SURE)
        labels, scores = alone.pred_sem_seg.sem_seg, alone.pred_instances.scores
        assert labels.shape[1:] == image[1].ori_shape
        assert (labels == expected.pred_sem_seg.sem_seg).float().mean() > 0.999
        torch.testing.assert_close(scores, expected.pred_instances.scores, rtol=0, atol=1e-4)


def test_results_have_the_types_mmdet_reads():
    [found] = predict(build_sure_detector(thing_ids=[0, 2]), **SURE)
    instances = found.pred_instances
    assert set(instances.labels.tolist()) <= {0, 2}
    assert instances.bboxes.dtype == torch.float32
    assert (instances.scores.diff() <= 0).all()
    rows, columns = instances.masks[0].nonzero().unbind(1)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert instances.bboxes[0].tolist() == box
    ids = found.pred_panoptic_seg.sem_seg.unique()
    things = ids[ids >= 1000]
    assert sorted((things // 1000).tolist()) == list(range(1, len(things) + 1))
    assert set((things % 1000).tolist()) <= {0, 2}


def test_thresholds_and_limits_hold():
    model = build_sure_detector()
    scores = predict(model)[0].pred_instances.scores
    middle = scores.median().item()
    kept = predict(model, score_thr=middle)[0].pred_instances.scores
    assert torch.equal(kept, scores[scores >= middle])
    assert len(predict(model, max_per_image=3)[0].pred_instances) == 3
    assert predict(model, non_overlap=True)[0].pred_instances.masks.sum(0).max() == 1


def test_instances_as_run_lengths_are_those_of_the_bitmaps():
    pycocotools = pytest.importorskip('pycocotools.mask')
    model = build_sure_detector(thing_ids=[0, 2])
    bitmaps, codes = (
        predict(model, **SURE, mask_format=mask_format)[0].pred_instances
        for mask_format in ('bitmap', 'rle')
    )
    json.dumps(codes.masks)
    decoded = torch.from_numpy(pycocotools.decode(codes.masks)).permute(2, 0, 1)
    assert torch.equal(decoded.bool(), bitmaps.masks)
    for name in ('labels', 'scores', 'bboxes'):
        assert torch.equal(codes[name], bitmaps[name])
    # Metrics read the same from both.
    size = bitmaps.masks.shape[1:]
    both = (instances_of({'pred_instances': x, 'ori_shape': size}) for x in (bitmaps, codes))
    assert all(np.array_equal(*values) for values in zip(*both, strict=True))


def test_errors_and_warnings_of_the_losses_name_the_image(said):
    model, data = build_detector(), two_images()
    data['data_samples'][1].gt_instances.labels[0] = 5
    with pytest.raises(ValueError, match=r'street_1\.jpg.*\[5\]'):
        losses_of(model, data)
    for _ in range(2):
        losses_of(model, two_images(num_targets=(9, 9)))
    [line] = [line for line in said if 'queries' in line]
    assert 'street_0.jpg has 9 targets, but the head has only 8 queries' in line
    torch.nn.init.constant_(model.panoptic_head.decoder.class_embed.bias, math.nan)
    with pytest.raises(NonFinitePredictionError, match=r'prediction 0.*street_0\.jpg'):
        losses_of(model, two_images())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'queries': 3}, r"does not know \['queries'\].*'thing_ids'"),
        ({'thing_ids': [1, 5]}, r'from 0 to 4.*\[1, 5\]'),
        ({'test_cfg': {'iou_thr': 0.8}}, r"does not know \['iou_thr'\].*'overlap_thr'"),
        ({'test_cfg': dict.fromkeys(FIELDS, False)}, r'all results off.*instance_on'),
        ({'num_classes': 1000}, r'fewer than 1000 classes.*panoptic_on=False'),
    ],
)
def test_mistakes_in_the_config_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        build_detector(**settings)


def test_settings_of_the_detector():
    model = build_detector(1000, {'panoptic_on': False}, thing_ids=(3, 1))
    assert model.test_cfg == PostprocessConfig(panoptic_on=False)
    assert model.panoptic_head.is_thing.nonzero().flatten().tolist() == [1, 3]
    assert model.panoptic_head.resolved_config()['thing_ids'] == [1, 3]
    keys = r"\['train_cfg'\].*\['backbone', 'panoptic_head', 'neck', .*'test_cfg', 'init_cfg'\]"
    with pytest.raises(ValueError, match=f'does not know {keys}'):
        MODELS.build({**small_models.detector(), 'train_cfg': 1})
