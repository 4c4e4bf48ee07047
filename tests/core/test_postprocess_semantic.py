import pytest
import torch

from mmseg_m2f.core import chunks
from mmseg_m2f.core.postprocess import resize_masks, to_original
from mmseg_m2f.core.postprocess_semantic import (
    resize_band,
    rows_read,
    semantic_labels,
    semantic_only_labels,
    semantic_scores,
)
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch


def test_scores_by_hand():
    # Probabilities over two classes and no-object: (1/2, 1/4, 1/4) and (0, 1/2, 1/2).
    class_logits = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]).log()
    mask_logits = torch.tensor([[[0.0, 100.0]], [[-100.0, 0.0]]])
    scores = semantic_scores(class_logits, mask_logits, slow.at(1, 2))
    torch.testing.assert_close(scores, torch.tensor([[[0.25, 0.5]], [[0.125, 0.5]]]))


def assert_best(labels, scores, atol):
    """Each pixel has the class of the highest score, or of one within rounding of it."""
    assert labels.shape == scores.shape[1:]
    chosen = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), rtol=0, atol=atol)


@pytest.mark.parametrize('budget', [2**25, 24_000, 2000])
def test_both_orders_of_resizing_equal_the_definition(budget, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', budget)
    differ = 0
    for seed in range(80):
        scene = slow.random_scene(seed)
        class_logits, mask_logits = scene.class_logits.double(), scene.mask_logits.double()
        scene = scene._replace(class_logits=class_logits, mask_logits=mask_logits)
        geometry = scene.geometry
        before = semantic_scores(class_logits, mask_logits, geometry)
        expected = torch.from_numpy(slow.semantic(class_logits, scene.full_logits))
        torch.testing.assert_close(before, expected, rtol=1e-11, atol=1e-11)
        assert_best(semantic_labels(class_logits, mask_logits, geometry), expected, 1e-11)

        after = semantic_scores(class_logits, mask_logits, slow.at(*geometry.padded))
        after = to_original(after, geometry)
        padded = slow.resized(mask_logits, geometry.padded)
        expected = torch.from_numpy(slow.semantic(class_logits, padded))
        height, width = geometry.resized
        expected = slow.resized(expected[:, :height, :width], geometry.original)
        torch.testing.assert_close(after, expected, rtol=1e-11, atol=1e-11)
        assert_best(semantic_only_labels(class_logits, mask_logits, geometry), expected, 1e-11)
        differ += not torch.allclose(before, after, atol=1e-3)
    assert differ > 25


GEOMETRIES = [
    ImageGeometry((32, 48), (32, 48), (32, 48)),  # nothing to undo
    ImageGeometry((32, 64), (30, 41), (30, 41)),  # padding
    ImageGeometry((32, 64), (30, 41), (97, 133)),  # enlarged after
    ImageGeometry((64, 64), (60, 37), (13, 8)),  # made smaller after
    ImageGeometry((32, 32), (1, 32), (3, 96)),  # one row
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_labels_are_those_of_the_highest_scores(monkeypatch, geometry):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 24_000)  # bands of a few rows
    height, width = geometry.padded
    scene = torch.randn(30, 6), 5 * torch.randn(30, height // 4, width // 4)
    with Watch() as watch:
        labels, only = semantic_labels(*scene, geometry), semantic_only_labels(*scene, geometry)
    assert not watch.waits
    assert_best(labels, semantic_scores(*scene, geometry), 1e-4)
    scores = semantic_scores(*scene, slow.at(height, width))
    assert_best(only, to_original(scores, geometry), 1e-4)


def test_a_band_by_hand():
    # A column of four rows, resized to eight: rows 2 to 4 lie a quarter below row 0 and so on.
    held, lines = torch.tensor([[[0.0], [4.0], [8.0]]]), range(3)
    assert resize_band(held, lines, 4, (8, 1), range(2, 5)).tolist() == [[[3.0], [5.0], [7.0]]]
    # The last output row repeats the last input row.
    assert resize_band(torch.tensor([[[8.0], [12.0]]]), range(2, 4), 4, (8, 1), range(7, 8)) == 12


@pytest.mark.parametrize('sizes', [(1, 5), (5, 1), (7, 7), (30, 97), (97, 30), (9, 10)], ids=str)
@pytest.mark.parametrize('length', [1, 3, 50])
def test_a_band_equals_those_rows_of_the_whole_and_needs_rows_read_alone(sizes, length):
    height, new_height = sizes
    maps = torch.randn(2, height, 6, dtype=torch.float64)
    for width in (6, 11):
        whole = resize_masks(maps, (new_height, width))
        for start in range(new_height):
            rows = range(start, min(start + length, new_height))
            lines = rows_read(height, new_height, rows)
            assert 0 <= lines.start < lines.stop <= height
            held = maps[:, lines.start : lines.stop]
            got = resize_band(held, lines, height, (new_height, width), rows)
            torch.testing.assert_close(got, whole[:, start : rows.stop], rtol=0, atol=1e-12)
