import numpy as np
import pytest
import torch

from mmseg_m2f.core import chunks, postprocess_panoptic
from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import restore_masks
from mmseg_m2f.core.postprocess_panoptic import panoptic
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch

ONE_THING = torch.tensor([True])
THING_AND_STUFF = torch.tensor([True, False])
SURE, LESS_SURE = [0.95, 0.05], [0.9, 0.1]  # class probabilities of one thing and no-object


def config(object_mask_thr=0.5, overlap_thr=0.8):
    return PostprocessConfig(object_mask_thr=object_mask_thr, overlap_thr=overlap_thr)


def at_full_size(class_probs, mask_logits, is_thing, *thresholds, **keys):
    """The result of probabilities and of mask logits that have the size of the image already."""
    class_logits, mask_logits = torch.tensor(class_probs).log(), torch.as_tensor(mask_logits)
    geometry = slow.at(*mask_logits.shape[1:])
    return panoptic(class_logits, mask_logits, geometry, is_thing, config(*thresholds), **keys)


def assert_equals_the_definition(scene, seed):
    settings = config((0.8, 0.5, 0.0)[seed % 3], (0.8, 0.4, 0.1, 0.0)[seed % 4])
    got, (segment_map, segments) = panoptic(*scene, settings), slow.panoptic(scene, settings)
    assert np.array_equal(got.segment_map.numpy(), segment_map)
    assert got.labels.tolist() == [label for label, _, _ in segments]
    assert got.is_thing.tolist() == [is_thing for _, is_thing, _ in segments]
    np.testing.assert_allclose(got.scores, [score for _, _, score in segments], atol=1e-5)
    return len(segments)


def test_random_scenes_equal_the_definition():
    numbers, merged = [], 0
    for seed, scene in enumerate(slow.random_scenes()):
        numbers.append(assert_equals_the_definition(scene, seed))
        apart = scene._replace(is_thing=torch.ones_like(scene.is_thing))
        merged += assert_equals_the_definition(apart, seed) > numbers[-1]
    assert min(numbers) == 0
    assert sum(number > 3 for number in numbers) > 40
    assert merged > 15


def test_segments_by_hand():
    # Two things of class 0, stuff of class 1 in two queries, a query of no-object.
    class_probs = [
        [0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.01, 0.01, 0.98], [0.8, 0.1, 0.1], [0.05, 0.9, 0.05]
    ]  # fmt: skip
    mask_logits = 9 * torch.tensor(
        [
            [[1, 1, -1, -1, -1, -1, -1.0]],
            [[-1, -1, 1, -1, -1, -1, -1]],
            [[1, 1, 1, 1, 1, 1, 1]],
            [[-1, -1, -1, 1, 1, -1, -1]],
            [[-1, -1, -1, -1, -1, 1, -1]],
        ]
    )
    got = at_full_size(class_probs, mask_logits, THING_AND_STUFF)
    assert got.segment_map.tolist() == [[1, 1, 2, 3, 3, 2, 0]]
    assert got.segment_map.dtype == torch.int32
    assert got.labels.tolist() == [0, 1, 0]
    assert got.is_thing.tolist() == [True, False, True]
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.9, 0.8]))


def test_without_the_intersection_a_segment_keeps_all_it_leads():
    # The first two lead beyond their masks; the third has no mask at all, whatever it leads.
    class_probs = [[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]]
    mask_probs = torch.tensor(
        [
            [[0.9, 0.9, 0.4, 0.2, 0.01, 0.01]],
            [[0.1, 0.1, 0.1, 0.3, 0.7, 0.01]],
            [[0.1, 0.1, 0.1, 0.1, 0.1, 0.49]],
        ]
    )
    for within_masks, expected in ((True, [1, 1, 0, 0, 2, 0]), (False, [1, 1, 1, 2, 2, 0])):
        scene = class_probs, mask_probs.logit(), ONE_THING
        got = at_full_size(*scene, 0.5, 0.5, within_masks=within_masks)
        assert got.segment_map.tolist() == [expected]
        assert got.labels.tolist() == [0, 0]


def test_things_and_stuff_follow_the_table_and_not_the_order_of_classes():
    scene = 4 * [[0.9, 0.05, 0.05]], 9 * (2 * torch.eye(4)[:, None] - 1)
    assert at_full_size(*scene, THING_AND_STUFF).segment_map.tolist() == [[1, 2, 3, 4]]
    stuff = at_full_size(*scene, ~THING_AND_STUFF)
    assert stuff.segment_map.tolist() == [[1, 1, 1, 1]]
    assert stuff.labels.tolist() == [0]


def test_a_dropped_stuff_query_does_not_hide_the_next_of_its_class():
    # The first loses all of its mask to a surer thing; the second becomes segment 2.
    class_probs = [[0.2, 0.6, 0.2], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1]]
    got = at_full_size(class_probs, [[[9.0, -9]], [[9, -9]], [[-9, 9]]], THING_AND_STUFF)
    assert got.segment_map.tolist() == [[1, 2]]
    assert got.labels.tolist() == [0, 1]
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.7]))


def test_a_class_probability_at_the_threshold_is_dropped():
    class_logits, geometry = torch.tensor([[1.0, 0.0]]), slow.at(2, 2)
    exact = class_logits.softmax(-1)[0, 0].item()
    below = np.nextafter(np.float32(exact), np.float32(0)).item()
    for threshold, number in ((0.0, 1), (below, 1), (exact, 0)):
        scene = class_logits, torch.ones(1, 2, 2), geometry, ONE_THING
        assert len(panoptic(*scene, config(threshold)).labels) == number


@pytest.mark.parametrize(
    ('masks', 'overlap_thr', 'expected'),
    [
        # The second mask has five pixels and wins four: 4 / 5 is 0.8 exactly, and kept.
        ([[9, -9, -9, -9, -9.0], [9, 9, 9, 9, 9]], 0.8, [1, 2, 2, 2, 2]),
        ([[9, -9, -9, -9, -9.0], [9, 9, 9, 9, 9]], 0.81, [1, 0, 0, 0, 0]),
        # It has two pixels and loses one; two that it wins outside its mask count, and are void.
        ([[9.0, -9, -9, -9], [8, 8, -1, -1]], 1.0, [1, 2, 0, 0]),
        # All that it wins is outside its mask: no segment.
        ([[9.0, -9, -9, -9], [1, -1, -1, -1]], 0.0, [1, 0, 0, 0]),
        # A probability of one half is inside.
        ([[0.0, -1e-3, 1e-3], [-9, -9, -9]], 0.8, [1, 0, 1]),
    ],
)
def test_the_overlap_decides_and_the_mask_limits(masks, overlap_thr, expected):
    mask_logits = torch.tensor(masks)[:, None]
    got = at_full_size([SURE, LESS_SURE], mask_logits, ONE_THING, 0.5, overlap_thr)
    assert got.segment_map.tolist() == [expected]
    assert len(got.labels) == max(expected)


@pytest.mark.parametrize('chunk', [1, 2, 25])
def test_equals_go_to_the_earlier_query(monkeypatch, chunk):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', chunk * 4 * 2 * 2)
    class_probs = [[0.05, 0.9, 0.05], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05]]
    got = at_full_size(class_probs, torch.full((3, 2, 2), 3.0), torch.tensor([True, True]))
    assert got.segment_map.tolist() == [[1, 1], [1, 1]]
    assert got.labels.tolist() == [1]


def test_no_query_is_sure_enough():
    scene = slow.random_scene(1)
    got = panoptic(*scene, config(object_mask_thr=1.0))
    assert [tuple(part.shape) for part in got] == [scene.geometry.original, (0,), (0,), (0,)]
    assert not got.segment_map.any()
    assert (got.segment_map.dtype, got.is_thing.dtype) == (torch.int32, torch.bool)


@pytest.mark.parametrize('number', [0, 1, 10, 100])
def test_only_sure_queries_are_restored_and_waits_do_not_grow_with_them(number, monkeypatch):
    restored = []

    def restore(mask_logits, geometry):
        restored.append(len(mask_logits))
        return restore_masks(mask_logits, geometry)

    monkeypatch.setattr(postprocess_panoptic, 'restore_masks', restore)
    class_probs = number * [[0.9, 0.05, 0.05]] + (100 - number) * [[0.7, 0.2, 0.1]]
    with Watch() as watch:
        at_full_size(class_probs, torch.randn(100, 8, 10), THING_AND_STUFF, 0.8, 0.0)
    assert watch.waits == ['aten::nonzero', 'aten::bincount']
    assert sum(restored) == number
