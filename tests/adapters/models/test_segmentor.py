"""Our segmentor gives the labels of mmseg's."""

import copy
import sys

import pytest
import torch
from mmengine import ConfigDict

pytest.importorskip('mmseg')
from mmseg.registry import MODELS

from mmseg_m2f.adapters.models import lazy
from mmseg_m2f.core import chunks
from tests.adapters.models.test_decode_head import SMALL, batch, build_segmentor
from tests.core.watching import Watch


def of_ours(stock, test_cfg=None):
    """Return our segmentor with the parts and weights of mmseg's."""
    keys = {'backbone': {'type': 'ResNet', 'depth': 18, 'base_channels': 8}}
    head = {'type': 'mmseg_m2f.Mask2FormerHead', 'num_classes': 3, 'in_channels': [8, 16, 32, 64]}
    keys['decode_head'] = {**head, **SMALL}
    keys['test_cfg'] = ConfigDict(test_cfg or {'mode': 'whole'})
    ours = MODELS.build({'type': 'mmseg_m2f.SemanticSegmentor', **keys})
    for name in ('data_preprocessor', 'backbone', 'decode_head'):
        setattr(ours, name, getattr(stock, name))
    ours.align_corners = stock.align_corners
    return ours.eval()


def spread_scores(model):
    """Change the weights so that several classes and masks stand out."""
    torch.manual_seed(0)
    decoder = model.decode_head.decoder
    torch.nn.init.normal_(decoder.class_embed.weight, std=2)
    for linear in decoder.mask_embed:
        torch.nn.init.normal_(linear.weight, std=0.5)
    return model.eval()


def predict(model, data):
    return results(model, model.data_preprocessor(copy.deepcopy(data), training=False))


def results(model, data):
    with torch.no_grad():
        return model(**copy.deepcopy(data), mode='predict')


def check_labels(found, expected):
    """Check that labels are equal, except where scores are equal up to rounding."""
    assert found.pred_sem_seg.data.shape == expected.pred_sem_seg.data.shape
    assert found.pred_sem_seg.data.dtype == torch.int64
    scores = expected.seg_logits.data
    chosen = scores.gather(0, found.pred_sem_seg.data)
    torch.testing.assert_close(chosen[0], scores.amax(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize('original', [(50, 70), (100, 141), (20, 30)], ids=str)
def test_labels_are_those_of_mmsegs_segmentor(original):
    stock = spread_scores(build_segmentor())
    data = batch()
    for sample in data['data_samples']:
        sample.set_metainfo({'ori_shape': original})
    expected = predict(stock, data)
    found = predict(of_ours(stock), data)
    assert len(torch.unique(found[0].pred_sem_seg.data)) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert 'seg_logits' not in ours
        check_labels(ours, theirs)


def test_scores_are_given_where_they_are_asked_for():
    stock = spread_scores(build_segmentor())
    ours = of_ours(stock)
    ours.keep_score_maps()
    for found, expected in zip(predict(ours, batch()), predict(stock, batch()), strict=True):
        assert torch.equal(found.seg_logits.data, expected.seg_logits.data)
        assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)


@pytest.mark.parametrize('window', [(40, 41), (64, 96), (32, 200)], ids=str)
def test_sliding_windows_equal_mmsegs_bit_for_bit(window):
    test_cfg = {'mode': 'slide', 'crop_size': window, 'stride': (16, 24)}
    stock = spread_scores(build_segmentor(test_cfg=test_cfg))
    found, expected = predict(of_ours(stock, test_cfg), batch()), predict(stock, batch())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)


@pytest.mark.parametrize(
    'change',
    [
        {'num_classes': 1},
        {'align_corners': True},
        {'flip': True, 'flip_direction': 'horizontal'},
        {'img_padding_size': [0, 2, 3, 0]},
    ],
    ids=str,
)
def test_other_cases_are_those_of_mmseg(change):
    head = {key: value for key, value in change.items() if key in ('num_classes', 'align_corners')}
    meta = {key: value for key, value in change.items() if key not in head}
    stock = spread_scores(build_segmentor(**head))
    data = stock.data_preprocessor(batch(num_classes=head.get('num_classes', 3)))
    for sample in data['data_samples']:
        sample.set_metainfo(meta)
    for ours, theirs in zip(results(of_ours(stock), data), results(stock, data), strict=True):
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)


def test_images_without_samples_are_predicted():
    ours = of_ours(spread_scores(build_segmentor()))
    with torch.no_grad():
        [sample] = ours(torch.randn(1, 3, 64, 96), mode='predict')
    assert sample.pred_sem_seg.data.shape == (1, 64, 96)


def test_no_score_map_exists_for_a_large_image(monkeypatch):
    """It would have 3 x 2000 x 2000 floats."""
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 400_000)
    ours = of_ours(spread_scores(build_segmentor()))
    data = batch(num_images=1)
    data['data_samples'][0].set_metainfo({'ori_shape': (2000, 2000)})
    with Watch() as watch:
        [sample] = predict(ours, data)
    assert sample.pred_sem_seg.data.shape == (1, 2000, 2000)
    assert watch.largest < 300_000


def test_without_mmseg_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg.models', None)
    monkeypatch.delitem(sys.modules, 'mmseg_m2f.adapters.models.segmentor', raising=False)
    with pytest.raises(ImportError, match='pip install onedl-mmsegmentation'):
        lazy.build_segmentor()
