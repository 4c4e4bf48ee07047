"""The detector inside mmdet: losses, predictions, edge cases, errors."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from PIL import Image

structures = pytest.importorskip('mmdet.structures')
from mmdet.registry import DATASETS  # noqa: E402
from mmdet.registry import MODELS as MMDET_MODELS  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402

from mmseg_m2f.core import NonFinitePredictionError, PostprocessConfig  # noqa: E402
from tests.adapters import small_models  # noqa: E402
from tests.parity.parity_weights import tell_queries_apart  # noqa: E402
from tests.reduced import HEAD  # noqa: E402

COCO = Path(__file__).parents[3] / 'data/tiny/coco'
OUTPUTS = ('semantic_on', 'instance_on', 'panoptic_on')
FIELDS = {'semantic_on': 'pred_sem_seg', 'instance_on': 'pred_instances'}
FIELDS['panoptic_on'] = 'pred_panoptic_seg'
# Thresholds at which segments of random weights survive.
SURE = {'object_mask_thr': 0.3, 'overlap_thr': 0.2}


def build_detector(num_classes=5, test_cfg=None, **head):
    init_default_scope('mmdet')
    model = small_models.detector()
    model['data_preprocessor'].update(**small_models.NORMALIZED, pad_size_divisor=32)
    model['panoptic_head'].update({**HEAD, 'num_classes': num_classes, **head})
    return MMDET_MODELS.build({**model, 'test_cfg': test_cfg})


def noise_image(size, num_targets, num_classes=5, seed=0):
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


def two_images(num_targets=3, num_classes=5):
    return batch([noise_image((40, 60), num_targets, num_classes, seed) for seed in range(2)])


def losses_of(model, data):
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def sharpen(model):
    return tell_queries_apart(model, batch([real_image()]))


@torch.no_grad()
def predict(model, data, **test_cfg):
    model.eval()
    model.test_cfg = test_cfg or None
    return model.test_step(data)


def test_loss_names_and_every_parameter_gets_a_gradient():
    model = build_detector()
    losses = losses_of(model, two_images())
    assert set(losses) == {
        f'{p}loss_{n}' for p in ('d0.', 'd1.', '') for n in ('cls', 'mask', 'dice')
    }
    model.parse_losses(losses)[0].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert {name.split('.')[0] for name in model.state_dict()} == {'backbone', 'panoptic_head'}
    assert not [name for name in model.state_dict() if 'is_thing' in name]
    with torch.no_grad():
        class_logits, mask_logits = model(**model.data_preprocessor(two_images()), mode='tensor')
    assert class_logits.shape == (2, 8, 6)
    assert mask_logits.shape == (2, 8, 16, 16)


# Settings of the head, and the numbers of targets of two images.
EDGE_CASES = {
    'one class': ({'num_classes': 1}, (3, 3)),
    'two classes': ({'num_classes': 2}, (3, 3)),
    '20 queries': ({'num_queries': 20}, (3, 3)),
    'no target': ({}, (0, 0)),
    'one image without a target': ({}, (0, 4)),
    '300 targets, 100 queries': ({'num_queries': 100}, (300, 300)),
    'no things': ({'thing_ids': []}, (3, 3)),
}


@pytest.mark.parametrize('case', EDGE_CASES)
def test_edge_cases_train_and_predict(case):
    settings, num_targets = EDGE_CASES[case]
    classes = settings.get('num_classes', 5)
    images = [noise_image((40, 60), n, classes, seed) for seed, n in enumerate(num_targets)]
    check_training_and_prediction(build_detector(**settings), batch(images))


@pytest.mark.cuda
def test_trains_and_predicts_on_a_gpu():
    check_training_and_prediction(build_detector(thing_ids=[1, 3]).cuda(), two_images())


def test_crowd_only(tmp_path):
    """An image with a crowd region only has no target; mmdet loads and packs it."""
    record = json.loads((COCO / 'annotations/instances_train.json').read_text())
    image = record['images'][0]
    crowd = next(a for a in record['annotations'] if a['image_id'] == image['id'])
    record.update(images=[image], annotations=[{**crowd, 'iscrowd': 1}])
    annotations = tmp_path / 'crowd.json'
    annotations.write_text(json.dumps(record))
    sample = coco_instances(annotations)[0]['data_samples']
    assert len(sample.gt_instances) == 0
    assert len(sample.ignored_instances) == 1
    data = [coco_instances(annotations)[0] for _ in range(2)]
    data = {key: [item[key] for item in data] for key in data[0]}
    check_training_and_prediction(build_detector(num_classes=80), data)


def check_training_and_prediction(model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        total, _ = model.parse_losses(losses_of(model, data))
        optimizer.zero_grad()
        total.backward()
        assert torch.isfinite(total)
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
    num_classes = model.panoptic_head.num_classes
    for sample in predict(model, data, object_mask_thr=0.0):
        size = sample.ori_shape[:2]
        found = sample.pred_instances
        limit = min(100, model.panoptic_head.num_queries * num_classes)
        is_thing = model.panoptic_head.is_thing
        assert len(found) == limit if is_thing.all() else len(found) <= limit * is_thing.any()
        assert found.masks.shape == (len(found), *size)
        assert found.masks.dtype == torch.bool
        assert torch.isfinite(found.scores).all()
        assert sample.pred_sem_seg.sem_seg.shape == (1, *size)
        assert sample.pred_sem_seg.sem_seg.dtype == torch.int64
        panoptic = sample.pred_panoptic_seg.sem_seg
        assert panoptic.shape == (1, *size)
        assert (panoptic % 1000 <= num_classes).all()


def coco_instances(annotations):
    """Return mmdet's ``CocoDataset`` with mmdet's transforms only."""
    init_default_scope('mmdet')
    return DATASETS.build(
        {
            'type': 'CocoDataset',
            'ann_file': str(annotations),
            'data_prefix': {'img': str(COCO / 'img/train')},
            'filter_cfg': None,
            'pipeline': [
                {'type': 'LoadImageFromFile'},
                {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
                {'type': 'Resize', 'scale': (128, 96), 'keep_ratio': True},
                {'type': 'PackDetInputs'},
            ],
        }
    )


def test_our_layout_and_mmdet_s_give_the_same_losses():
    """Segments as an index map, and the same ones as instances and a label map."""
    segment_map = torch.full((40, 60), -1)
    segment_map[:20, :30], segment_map[20:, :20], segment_map[30:, 40:] = 0, 1, 2
    labels = torch.tensor([1, 4, 0])  # a thing, then stuff in falling order
    image, sample = noise_image((40, 60), 0)
    ours = sample.clone()
    ours.gt_panoptic_seg = PixelData(segment_idx=segment_map[None].int())
    ours.gt_segments = InstanceData(labels=labels)
    label_map = torch.where(segment_map < 0, 255, labels[segment_map])
    sample.gt_instances = InstanceData(
        labels=labels[:1], masks=BitmapMasks((segment_map == 0).numpy()[None], 40, 60)
    )
    sample.gt_sem_seg = PixelData(sem_seg=label_map[None])
    model = build_detector(thing_ids=[1, 3])
    values = []
    for one in (ours, sample):
        torch.manual_seed(0)
        values.append(losses_of(model, {'inputs': [image], 'data_samples': [one]}))
    for name, value in values[0].items():
        torch.testing.assert_close(values[1][name], value, rtol=1e-5, atol=1e-6)


def real_image():
    image = Image.open(sorted((COCO / 'img/train').iterdir())[0])
    small = np.array(image.resize((96, 64)))[..., ::-1]
    meta = {'img_path': 'real.jpg', 'img_shape': (64, 96), 'ori_shape': image.size[::-1]}
    sample = structures.DetDataSample(metainfo=meta)
    return torch.from_numpy(small.copy()).permute(2, 0, 1), sample


def test_each_output_is_the_same_whichever_others_are_on():
    model = sharpen(build_detector(thing_ids=[4, 1], num_queries=20))
    switched = {}
    for flags in itertools.product([True, False], repeat=3):
        test_cfg = dict(zip(OUTPUTS, flags, strict=True))
        if any(flags):
            data = batch([real_image()])
            switched[flags] = predict(model, data, **SURE, **test_cfg)[0]
    everything = switched[True, True, True]
    encoded = everything.pred_panoptic_seg.sem_seg
    assert (encoded >= 1000).any(), 'no thing survived: the test would show nothing'
    assert ((encoded < 1000) & (encoded != 5)).any(), 'no stuff survived'
    assert len(everything.pred_instances) > 0
    assert len(switched) == 7
    for flags, found in switched.items():
        for name, is_on in zip(OUTPUTS, flags, strict=True):
            field = FIELDS[name]
            assert (field in found) == is_on
            if is_on:
                assert_same(found.get(field), everything.get(field))


def assert_same(one, other):
    assert set(one.keys()) == set(other.keys())
    for key, value in one.items():
        assert torch.equal(value, other.get(key)), key


def test_images_of_different_sizes_are_treated_alone():
    """The batch pads to the larger image: both orders of the batch give the same results."""
    model = sharpen(build_detector(num_queries=20))
    # Equal padded sizes: an image alone is the same network input.
    images = [noise_image((50, 90), 2, seed=1), noise_image((60, 70), 2, seed=2)]
    together = predict(model, batch(images), **SURE)
    for index, data in enumerate(images):
        alone = predict(model, batch([data]), **SURE)[0]
        size = data[1].ori_shape
        assert alone.pred_sem_seg.sem_seg.shape[1:] == size
        same = alone.pred_sem_seg.sem_seg == together[index].pred_sem_seg.sem_seg
        assert same.float().mean() > 0.999
        torch.testing.assert_close(
            alone.pred_instances.scores, together[index].pred_instances.scores, rtol=0, atol=1e-4
        )


def test_results_have_the_types_mmdet_reads():
    model = sharpen(build_detector(thing_ids=[0, 2], num_queries=20))
    found = predict(model, batch([real_image()]), **SURE)[0]
    instances = found.pred_instances
    assert set(instances.labels.tolist()) <= {0, 2}
    assert instances.bboxes.dtype == torch.float32
    assert (instances.scores.diff() <= 0).all()
    left, top, right, bottom = instances.bboxes[0].int().tolist()
    rows, columns = instances.masks[0].nonzero().unbind(1)
    assert (left, top) == (columns.min(), rows.min())
    assert (right, bottom) == (columns.max() + 1, rows.max() + 1)
    things = found.pred_panoptic_seg.sem_seg.unique()
    numbers = sorted((things[things >= 1000] // 1000).tolist())
    assert numbers == list(range(1, len(numbers) + 1))
    assert set((things[things >= 1000] % 1000).tolist()) <= {0, 2}


def test_thresholds_and_limits_hold():
    model = sharpen(build_detector(num_queries=20))
    scores = predict(model, two_images())[0].pred_instances.scores
    middle = scores.median().item()
    kept = predict(model, two_images(), score_thr=middle)[0].pred_instances.scores
    assert torch.equal(kept, scores[scores >= middle])
    assert len(predict(model, two_images(), max_per_image=3)[0].pred_instances) == 3
    masks = predict(model, two_images(), non_overlap=True)[0].pred_instances.masks
    assert masks.sum(0).max() == 1


def test_instances_as_run_lengths_are_those_of_the_bitmaps():
    pycocotools = pytest.importorskip('pycocotools.mask')
    model = sharpen(build_detector(thing_ids=[0, 2], num_queries=20))
    bitmaps, codes = (
        predict(model, batch([real_image()]), **SURE, mask_format=mask_format)[0].pred_instances
        for mask_format in ('bitmap', 'rle')
    )
    assert isinstance(codes.masks, list)
    assert len(codes.masks) == len(bitmaps)
    json.dumps(codes.masks)
    decoded = torch.from_numpy(pycocotools.decode(codes.masks)).permute(2, 0, 1)
    assert torch.equal(decoded.bool(), bitmaps.masks)
    for name in ('labels', 'scores', 'bboxes'):
        assert torch.equal(codes[name], bitmaps[name])
    # Metrics read the same from both.
    from mmseg_m2f.adapters.metrics.sample_fields import instances_of

    size = bitmaps.masks.shape[1:]
    for one, other in zip(
        *(instances_of({'pred_instances': x, 'ori_shape': size}) for x in (bitmaps, codes)),
        strict=True,
    ):
        assert np.array_equal(one, other)
    nothing = instances_of({'pred_instances': codes[:0], 'ori_shape': size})
    assert nothing.masks.shape == (0, *size)


def test_errors_and_warnings_of_the_losses_name_the_image(said):
    model, data = build_detector(), two_images()
    data['data_samples'][1].gt_instances.labels[0] = 5
    with pytest.raises(ValueError, match=r'street_1\.jpg.*\[5\]'):
        losses_of(model, data)
    for _ in range(2):
        losses_of(model, two_images(num_targets=9))
    [line] = [line for line in said if 'queries' in line]
    assert 'street_0.jpg has 9 targets, but the head has only 8 queries' in line
    torch.nn.init.constant_(model.panoptic_head.decoder.class_embed.bias, math.nan)
    with pytest.raises(NonFinitePredictionError, match=r'prediction 0.*street_0\.jpg'):
        losses_of(model, two_images())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'queries': 3}, r"does not know \['queries'\].*'thing_ids'"),
        ({'thing_ids': [1, 5]}, r'from 0 to 4.*wrong: \[5\]'),
        ({'thing_ids': [1, -1]}, r'wrong: \[-1\]'),
        ({'thing_ids': [1, 2, 1]}, r'repeated: \[1\]'),
        ({'test_cfg': {'iou_thr': 0.8}}, r"does not know \['iou_thr'\].*'overlap_thr'"),
        ({'test_cfg': dict.fromkeys(OUTPUTS, False)}, r'all results off.*instance_on'),
        ({'test_cfg': {'overlap_thr': 2.0}}, r'overlap_thr'),
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
        MMDET_MODELS.build(
            {'type': 'mmseg_m2f.Mask2Former', 'backbone': {}, 'panoptic_head': {}, 'train_cfg': 1}
        )


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}')

sys.meta_path.insert(0, Block())
from mmengine.registry import MODELS
"""


def run_without(blocked, code):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', BLOCKED.format(blocked=blocked) + code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_without_mmdet_registering_works_and_building_says_what_to_install():
    output = run_without(
        'mmdet',
        """
try:
    MODELS.build(dict(type='mmseg_m2f.Mask2Former', backbone={}, panoptic_head={}))
except ImportError as error:
    print(error)
head = dict(type='mmseg_m2f.Mask2FormerUniversalHead', num_classes=2, in_channels=[8] * 4)
print(type(MODELS.build(head)).__name__)
""",
    )
    assert 'pip install onedl-mmdetection' in output
    assert output.strip().endswith('Mask2FormerUniversalHead')
