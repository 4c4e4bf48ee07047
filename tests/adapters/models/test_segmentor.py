"""Our segmentor gives the labels of mmseg's."""

import copy
import sys

import pytest
import torch

pytest.importorskip('mmseg')

from mmseg_m2f.adapters.models import lazy
from mmseg_m2f.core import chunks
from tests.adapters.models.test_decode_head import batch, build_segmentor
from tests.core.watching import Watch
from tests.parity.parity_weights import tell_queries_apart


def build_pair(test_cfg=None, **head):
    """Return our segmentor and mmseg's, with equal weights that tell classes and masks apart."""
    data = batch(num_classes=head.get('num_classes', 3))
    stock = tell_queries_apart(build_segmentor(test_cfg=test_cfg, **head), data)
    ours = build_segmentor(test_cfg=test_cfg, kind='mmseg_m2f.SemanticSegmentor', **head)
    ours.load_state_dict(stock.state_dict())
    return ours.eval(), stock.eval()


def predict(model, data=None, **meta):
    data = model.data_preprocessor(copy.deepcopy(data or batch()), training=False)
    for sample in data['data_samples']:
        sample.set_metainfo(meta)
    with torch.no_grad():
        return model(**data, mode='predict')


@pytest.mark.parametrize('original', [(50, 70), (100, 141), (20, 30)], ids=str)
def test_labels_are_those_of_mmsegs_segmentor(original):
    ours, stock = build_pair()
    found, expected = (predict(model, ori_shape=original) for model in (ours, stock))
    assert len(torch.unique(found[1].pred_sem_seg.data)) > 1
    for one, other in zip(found, expected, strict=True):
        assert 'seg_logits' not in one
        labels = one.pred_sem_seg.data
        assert labels.shape == other.pred_sem_seg.data.shape
        assert labels.dtype == torch.int64
        # The same but where scores are equal up to rounding.
        scores = other.seg_logits.data
        torch.testing.assert_close(scores.gather(0, labels)[0], scores.amax(0), rtol=0, atol=1e-4)
    ours.keep_score_maps()
    assert 'seg_logits' in predict(ours)[0]


def slide(*window):
    return {'test_cfg': {'mode': 'slide', 'crop_size': window, 'stride': (16, 24)}}


@pytest.mark.parametrize(
    ('settings', 'meta'),
    [
        ({'test_cfg': {'mode': 'whole', 'score_maps': True}}, {}),
        (slide(40, 41), {}),
        (slide(64, 96), {}),
        (slide(32, 200), {}),
        ({'num_classes': 1}, {}),
        ({'align_corners': True}, {}),
        ({}, {'flip': True, 'flip_direction': 'horizontal'}),
        ({}, {'img_padding_size': [0, 2, 3, 0]}),
    ],
    ids=str,
)
def test_score_maps_are_those_of_mmseg_bit_for_bit(settings, meta):
    data = batch(num_classes=settings.get('num_classes', 3))
    found, expected = (predict(model, data, **meta) for model in build_pair(**settings))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)


def test_images_without_samples_are_predicted():
    ours, _ = build_pair()
    with torch.no_grad():
        [sample] = ours(torch.randn(1, 3, 64, 96), mode='predict')
    assert sample.pred_sem_seg.data.shape == (1, 64, 96)


def test_no_score_map_exists_for_a_large_image(monkeypatch):
    """It would have 3 x 2000 x 2000 floats."""
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 400_000)
    ours, _ = build_pair()
    with Watch() as watch:
        [sample] = predict(ours, batch(num_images=1), ori_shape=(2000, 2000))
    assert sample.pred_sem_seg.data.shape == (1, 2000, 2000)
    assert watch.largest < 300_000


@pytest.mark.parametrize(
    ('build', 'imported', 'ours', 'distribution'),
    [
        (lazy.build_segmentor, 'mmseg.models', 'segmentor', 'onedl-mmsegmentation'),
        (lazy.build_detector, 'mmdet.registry', 'detector', 'onedl-mmdetection'),
    ],
)
def test_without_a_framework_the_error_says_what_to_install(
    monkeypatch, build, imported, ours, distribution
):
    monkeypatch.setitem(sys.modules, imported, None)
    monkeypatch.delitem(sys.modules, f'mmseg_m2f.adapters.models.{ours}', raising=False)
    with pytest.raises(ImportError, match=f'pip install {distribution}'):
        build()
