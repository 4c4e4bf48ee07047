import pytest
import torch

from mmseg_m2f.core import chunks
from mmseg_m2f.core.postprocess import to_original
from mmseg_m2f.core.postprocess_semantic import (
    semantic_labels,
    semantic_only_labels,
    semantic_scores,
)
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow
from tests.core.test_postprocess import GEOMETRIES
from tests.core.watching import Watch


def at(*size):
    """The geometry of an image that is resized once."""
    return ImageGeometry(size, size, size)


def test_scores_by_hand():
    # Probabilities over two classes and no-object: (1/2, 1/4, 1/4) and (0, 1/2, 1/2).
    class_logits = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]).log()
    mask_logits = torch.tensor([[[0.0, 100.0]], [[-100.0, 0.0]]])
    scores = semantic_scores(class_logits, mask_logits, at(1, 2))
    torch.testing.assert_close(scores, torch.tensor([[[0.25, 0.5]], [[0.125, 0.5]]]))


@pytest.mark.parametrize('num_queries', [1, 24, 25, 60])
@pytest.mark.parametrize('chunk', [1, 7, 25])
def test_chunks_of_queries_do_not_change_the_scores(monkeypatch, num_queries, chunk):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', chunk * 4 * 29 * 35)
    class_logits = torch.randn(num_queries, 5, dtype=torch.float64)
    mask_logits = 3 * torch.randn(num_queries, 7, 9, dtype=torch.float64)
    got = semantic_scores(class_logits, mask_logits, at(29, 35))
    expected = slow.semantic(class_logits, slow.resized(mask_logits, (29, 35)))
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_one_class_is_a_probability_map_of_its_own():
    scores = semantic_scores(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 2, 2), at(4, 4))
    torch.testing.assert_close(scores, torch.full((1, 4, 4), 0.25))


@pytest.mark.parametrize('size', [(6, 8), (24, 32)])
def test_inputs_are_not_changed(size):
    class_logits, mask_logits = torch.randn(3, 4), torch.randn(3, 6, 8)
    before = class_logits.clone(), mask_logits.clone()
    semantic_scores(class_logits, mask_logits, at(*size))
    assert torch.equal(class_logits, before[0])
    assert torch.equal(mask_logits, before[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    class_logits, mask_logits = torch.randn(8, 4).to(dtype), torch.randn(8, 6, 8).to(dtype)
    got = semantic_scores(class_logits, mask_logits, at(24, 32))
    expected = semantic_scores(class_logits.float(), mask_logits.float(), at(24, 32))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def assert_best(labels, scores):
    """Each pixel has the class of the highest score, or of one within rounding of it."""
    assert labels.shape == scores.shape[1:]
    chosen = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), rtol=0, atol=1e-4)


def test_both_orders_of_resizing_equal_the_definition():
    differ = 0
    for seed in range(240):
        scene = slow.random_scene(seed)
        prediction = scene.class_logits, scene.mask_logits
        geometry = scene.geometry
        before = semantic_scores(*prediction, geometry)
        expected = torch.from_numpy(slow.semantic(scene.class_logits, scene.full_logits))
        torch.testing.assert_close(before, expected.float(), rtol=1e-5, atol=1e-5)
        assert_best(semantic_labels(*prediction, geometry), expected)

        after = to_original(semantic_scores(*prediction, at(*scene.padded)), geometry)
        padded = slow.resized(scene.mask_logits, scene.padded)
        expected = torch.from_numpy(slow.semantic(scene.class_logits, padded)).float()
        height, width = scene.cropped
        expected = slow.resized(expected[:, :height, :width], scene.original)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        assert_best(semantic_only_labels(*prediction, geometry), expected)
        differ += not torch.allclose(before, after, atol=1e-3)
    assert differ > 80


def test_semantic_scores_hold_only_a_chunk_at_full_size(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 6 * 40 * 50)
    scene = torch.randn(100, 4), torch.randn(100, 8, 10)
    geometry = ImageGeometry((32, 40), (30, 40), (40, 50))
    with Watch() as watch:
        semantic_scores(*scene, geometry)
    assert watch.largest == 6 * 40 * 50
    assert not watch.waits


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_labels_are_those_of_the_highest_scores(monkeypatch, geometry):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 24_000)  # bands of a few rows
    class_logits = torch.randn(30, 6)
    mask_logits = 5 * torch.randn(30, geometry.padded[0] // 4, geometry.padded[1] // 4)
    labels = semantic_labels(class_logits, mask_logits, geometry)
    scores = semantic_scores(class_logits, mask_logits, geometry)
    assert_best(labels, scores)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_no_autocast_reaches_the_semantic_result(dtype):
    """Its rounding would make hundreds of pixels' best classes tie."""
    generator = torch.Generator().manual_seed(0)
    prediction = [torch.randn(size, generator=generator) for size in ((50, 21), (50, 16, 24))]
    geometry = ImageGeometry((64, 96), (60, 90), (75, 110))
    for function in (semantic_scores, semantic_labels, semantic_only_labels):
        expected = function(*prediction, geometry)
        with torch.autocast('cpu', dtype=dtype):
            assert torch.equal(function(*prediction, geometry), expected)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_labels_of_a_semantic_only_model_are_those_of_its_scores(monkeypatch, geometry):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 24_000)  # bands of a few rows
    class_logits = torch.randn(30, 6)
    mask_logits = 5 * torch.randn(30, geometry.padded[0] // 4, geometry.padded[1] // 4)
    labels = semantic_only_labels(class_logits, mask_logits, geometry)
    scores = semantic_scores(class_logits, mask_logits, at(*geometry.padded))
    assert_best(labels, to_original(scores, geometry))


@pytest.mark.parametrize('of', [semantic_labels, semantic_only_labels])
@pytest.mark.parametrize('original', [(300, 300), (16, 16)], ids=str)
def test_labels_hold_only_a_band_at_full_size(monkeypatch, of, original):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 80_000)
    geometry = ImageGeometry((64, 64), (64, 64), original)
    with Watch() as watch:
        of(torch.randn(20, 11), torch.randn(20, 16, 16), geometry)
    assert watch.largest <= 20_000
    assert not watch.waits
