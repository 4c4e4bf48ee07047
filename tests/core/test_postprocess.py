import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.core import postprocess
from mmseg_m2f.core.postprocess import (
    input_scores,
    mask_areas,
    query_chunks,
    resize_masks,
    restore_masks,
    restore_rows,
    restore_scores,
    restored_size,
    semantic_labels,
    semantic_only_labels,
    semantic_scores,
)
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch


def at(*size):
    return partial(resize_masks, size=size)


def naive_scores(class_logits, mask_logits, size):
    """Query by query, straight from the formula."""
    probs = class_logits.softmax(-1)[:, :-1]
    full = F.interpolate(mask_logits[:, None], size=size, mode='bilinear', align_corners=False)
    scores = torch.zeros(probs.shape[1], *size, dtype=full.dtype)
    for query, mask in enumerate(full[:, 0]):
        for label in range(probs.shape[1]):
            scores[label] += probs[query, label] / (1 + torch.exp(-mask))
    return scores


def test_scores_by_hand():
    # Probabilities over two classes and no-object: (1/2, 1/4, 1/4) and (0, 1/2, 1/2).
    class_logits = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]).log()
    mask_logits = torch.tensor([[[0.0, 100.0]], [[-100.0, 0.0]]])
    scores = semantic_scores(class_logits, mask_logits, at(1, 2))
    torch.testing.assert_close(scores, torch.tensor([[[0.25, 0.5]], [[0.125, 0.5]]]))


@pytest.mark.parametrize('num_queries', [1, 24, 25, 26, 60])
@pytest.mark.parametrize('max_queries', [1, 7, 25])
def test_chunks_of_queries_do_not_change_the_scores(monkeypatch, num_queries, max_queries):
    monkeypatch.setattr(postprocess, 'MAX_QUERIES', max_queries)
    class_logits = torch.randn(num_queries, 5, dtype=torch.float64)
    mask_logits = 3 * torch.randn(num_queries, 7, 9, dtype=torch.float64)
    got = semantic_scores(class_logits, mask_logits, at(29, 35))
    expected = naive_scores(class_logits, mask_logits, (29, 35))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_one_class_is_a_probability_map_of_its_own():
    scores = semantic_scores(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 2, 2), at(4, 4))
    torch.testing.assert_close(scores, torch.full((1, 4, 4), 0.25))


def test_scores_lie_between_zero_and_the_number_of_queries():
    scores = semantic_scores(9 * torch.randn(30, 4), 9 * torch.randn(30, 5, 5), at(11, 13))
    assert scores.min() >= 0
    assert scores.max() <= 30


@pytest.mark.parametrize('size', [(6, 8), (24, 32)])
def test_inputs_are_not_changed(size):
    # Resizing to the same size must not hand back the input itself: the sigmoid works in place.
    class_logits, mask_logits = torch.randn(3, 4), torch.randn(3, 6, 8)
    before = class_logits.clone(), mask_logits.clone()
    semantic_scores(class_logits, mask_logits, at(*size))
    assert torch.equal(class_logits, before[0])
    assert torch.equal(mask_logits, before[1])
    same = ImageGeometry(size, size, size)
    semantic_scores(class_logits, mask_logits, partial(restore_masks, geometry=same))
    assert torch.equal(mask_logits, before[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    class_logits, mask_logits = torch.randn(8, 4).to(dtype), torch.randn(8, 6, 8).to(dtype)
    got = semantic_scores(class_logits, mask_logits, at(24, 32))
    expected = semantic_scores(class_logits.float(), mask_logits.float(), at(24, 32))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_both_orders_of_resizing_equal_the_definition():
    differ = 0
    for seed in range(60):
        scene = slow.random_scene(seed)
        prediction = scene.class_logits, scene.mask_logits
        geometry = ImageGeometry(scene.padded, scene.cropped, scene.original)
        before = semantic_scores(*prediction, partial(restore_masks, geometry=geometry))
        expected = torch.from_numpy(slow.semantic(scene.class_logits, scene.full_logits))
        torch.testing.assert_close(before, expected.float(), rtol=1e-5, atol=1e-5)

        after = restore_scores(semantic_scores(*prediction, at(*scene.padded)), geometry)
        padded = slow.resized(scene.mask_logits, scene.padded)
        expected = torch.from_numpy(slow.semantic(scene.class_logits, padded)).float()
        height, width = scene.cropped
        expected = slow.resized(expected[:, :height, :width], scene.original)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        differ += not torch.allclose(before, after, atol=1e-3)
    assert differ > 20


def test_restoring_by_hand():
    # Ramp of 4 to 8 pixels; the last three are padding; two pixels of the file for each of five.
    ramp = torch.tensor([[[0.0, 4.0, 8.0, 12.0]]])
    padded = [0, 1, 3, 5, 7, 9, 11, 12]
    assert resize_masks(ramp, (1, 8)).tolist() == [[padded]]
    original = [0, 0.25, 0.75, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    geometry = ImageGeometry((1, 8), (1, 5), (1, 10))
    assert restore_masks(ramp, geometry).tolist() == [[original]]
    assert restore_scores(torch.tensor([[padded]]).float(), geometry).tolist() == [[original]]


def test_each_query_is_restored_alone():
    # Bit for bit: neither the other queries nor the chunks may decide whether a logit is above 0.
    for seed in range(12):
        scene = slow.random_scene(seed)
        geometry = ImageGeometry(scene.padded, scene.cropped, scene.original)
        stack = restore_masks(scene.mask_logits, geometry)
        alone = [restore_masks(logits[None], geometry)[0] for logits in scene.mask_logits]
        assert torch.equal(stack, torch.stack(alone))
        assert torch.equal(stack, scene.full_logits)


def test_restoring_to_the_same_size_changes_no_bit():
    mask_logits = 9 * torch.randn(5, 6, 7)
    padded = resize_masks(mask_logits, (24, 28))
    restored = restore_masks(mask_logits, ImageGeometry((24, 28), (23, 21), (23, 21)))
    assert torch.equal(restored, padded[:, :23, :21])
    assert torch.equal(restored, resize_masks(padded[:, :23, :21], (23, 21)))


def test_no_query_has_a_size_too():
    geometry = ImageGeometry((24, 28), (23, 21), (50, 31))
    restore = partial(restore_masks, geometry=geometry)
    assert restored_size(torch.randn(4, 6, 7), restore) == (50, 31)
    assert restored_size(torch.randn(0, 6, 7).half(), restore) == (50, 31)


@pytest.mark.parametrize(
    ('stride_4', 'size', 'step', 'on_cpu'),
    [
        ((200, 272), (480, 640), 25, 4),  # 2^22 floats hold 4 times 800 x 1088
        ((256, 512), (1024, 2048), 25, 2),
        ((200, 256), (4000, 5000), 3, 1),
        ((512, 1024), (600, 1200), 8, 1),  # the padded picture is the larger one
        ((200, 256), (10000, 10000), 1, 1),
        ((16, 16), (64, 64), 25, 25),
    ],
)
@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('num_queries', [0, 1, 100])
def test_queries_at_a_time_follow_from_the_sizes(stride_4, size, step, on_cpu, device, num_queries):
    step = on_cpu if device == 'cpu' else step
    mask_logits = torch.zeros(1, 1, 1, device=device).expand(num_queries, *stride_4)
    chunks = list(query_chunks(mask_logits, size))
    assert [chunk.start for chunk in chunks] == list(range(0, num_queries, step))
    covered = [query for chunk in chunks for query in range(num_queries)[chunk]]
    assert covered == list(range(num_queries))


def test_semantic_scores_hold_only_a_chunk_at_full_size(monkeypatch):
    monkeypatch.setattr(postprocess, 'MAX_FLOATS', 6 * 40 * 50)
    scene = torch.randn(100, 4), torch.randn(100, 8, 10)
    geometry = ImageGeometry((32, 40), (30, 40), (40, 50))
    with Watch() as watch:
        semantic_scores(*scene, partial(restore_masks, geometry=geometry))
    assert watch.largest == 6 * 40 * 50
    assert not watch.waits


def test_areas_are_exact_beyond_what_float32_counts():
    masks = torch.ones(1, 4099, 4099, dtype=torch.bool)
    masks[0, 0, :2] = False
    area = 4099**2 - 2
    assert int(np.float32(area)) != area
    assert mask_areas(masks, torch.empty(1, 4099, 4099)).tolist() == [area]


HUGE_PICTURE = """
import resource, sys, torch
from functools import partial
from mmseg_m2f import core

def form(task, geometry):
    class_logits = torch.zeros(100, 3)
    class_logits[:, 2] = 9
    class_logits[::8, 0] = 18
    mask_logits = torch.randn(100, 200, 256)
    prediction = class_logits, mask_logits, partial(core.restore_masks, geometry=geometry)
    things = torch.tensor([True, False]), core.PostprocessConfig(score_thr=0.3)
    if task == 'semantic':
        return [core.semantic_scores(*prediction)]
    return getattr(core, task)(*prediction, *things)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
form(sys.argv[1], core.ImageGeometry((800, 1024), (800, 1000), (40, 50)))
before = peak()
result = form(sys.argv[1], core.ImageGeometry((800, 1024), (800, 1000), (4000, 5000)))
print(peak() - before - sum(part.nbytes for part in result))
"""


@pytest.mark.long
@pytest.mark.parametrize('task', ['semantic', 'instances', 'panoptic'])
def test_huge_pictures_need_less_than_a_gigabyte_beside_their_result(task):
    command = [sys.executable, '-c', HUGE_PICTURE, task]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9


GEOMETRIES = [
    ImageGeometry((32, 48), (32, 48), (32, 48)),  # nothing to undo
    ImageGeometry((32, 64), (30, 41), (30, 41)),  # padding
    ImageGeometry((32, 64), (30, 41), (97, 133)),  # enlarged after
    ImageGeometry((64, 64), (60, 37), (13, 8)),  # made smaller after
    ImageGeometry((32, 32), (1, 32), (3, 96)),  # one row
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_any_rows_equal_those_of_the_whole(geometry):
    mask_logits = torch.randn(5, geometry.padded[0] // 4, geometry.padded[1] // 4).double()
    whole = restore_masks(mask_logits, geometry)
    height = geometry.original[0]
    for start in range(0, height, 5):
        for stop in (start + 1, min(start + 7, height), height):
            rows = range(start, stop)
            got = restore_rows(mask_logits, geometry, rows)
            # Positions are computed in float32 there and in another order here.
            torch.testing.assert_close(got, whole[:, start:stop], rtol=0, atol=2e-4)


@pytest.mark.parametrize('size', [(16, 24), (61, 33), (7, 5)], ids=str)
def test_scores_by_rows_are_those_of_the_whole(monkeypatch, size):
    monkeypatch.setattr(postprocess, 'MAX_FLOATS', 2000)  # bands of a few rows
    prediction = torch.randn(30, 6), 5 * torch.randn(30, 16, 24)
    got = input_scores(*prediction, size)
    torch.testing.assert_close(got, semantic_scores(*prediction, at(*size)), rtol=0, atol=1e-4)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_labels_are_those_of_the_highest_scores(monkeypatch, geometry):
    monkeypatch.setattr(postprocess, 'MAX_FLOATS', 6000)  # bands of a few rows
    class_logits = torch.randn(30, 6)
    mask_logits = 5 * torch.randn(30, geometry.padded[0] // 4, geometry.padded[1] // 4)
    labels = semantic_labels(class_logits, mask_logits, geometry)
    restore = partial(restore_masks, geometry=geometry)
    scores = semantic_scores(class_logits, mask_logits, restore)
    assert labels.shape == geometry.original
    chosen = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_labels_of_a_semantic_only_model_are_those_of_its_scores(monkeypatch, geometry):
    monkeypatch.setattr(postprocess, 'MAX_FLOATS', 6000)  # bands of a few rows
    class_logits = torch.randn(30, 6)
    mask_logits = 5 * torch.randn(30, geometry.padded[0] // 4, geometry.padded[1] // 4)
    labels = semantic_only_labels(class_logits, mask_logits, geometry)
    scores = semantic_scores(class_logits, mask_logits, at(*geometry.padded))
    scores = restore_scores(scores, geometry)
    assert labels.shape == geometry.original
    chosen = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize('of', [semantic_labels, semantic_only_labels])
@pytest.mark.parametrize('original', [(300, 300), (16, 16)], ids=str)
def test_labels_hold_only_a_band_at_full_size(monkeypatch, of, original):
    monkeypatch.setattr(postprocess, 'MAX_FLOATS', 20_000)
    geometry = ImageGeometry((64, 64), (64, 64), original)
    with Watch() as watch:
        of(torch.randn(20, 11), torch.randn(20, 16, 16), geometry)
    assert watch.largest <= 20_000
    assert not watch.waits
