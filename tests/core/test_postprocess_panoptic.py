import numpy as np
import pytest
import torch

from mmseg_m2f.core import chunks, postprocess_panoptic
from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import restore_masks
from mmseg_m2f.core.postprocess_panoptic import panoptic
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch


def at_full_size(class_logits, mask_logits, *settings, **keys):
    """The result of mask logits that have the size of the image already."""
    size = mask_logits.shape[1], mask_logits.shape[2]
    geometry = ImageGeometry(size, size, size)
    return panoptic(class_logits, mask_logits, geometry, *settings, **keys)


def config(object_mask_thr=0.5, overlap_thr=0.8):
    return PostprocessConfig(object_mask_thr=object_mask_thr, overlap_thr=overlap_thr)


def settings(seed):
    return config((0.8, 0.5, 0.0)[seed % 3], (0.8, 0.4, 0.1, 0.0)[seed % 4])


def result_of(scene, config):
    return panoptic(scene.class_logits, scene.mask_logits, scene.geometry, scene.is_thing, config)


def logits_of(*rows):
    """Class logits whose softmax is the rows, which sum to 1."""
    return torch.tensor(rows).log()


def assert_equals_the_definition(scene, config):
    got = result_of(scene, config)
    segment_map, segments = slow.panoptic(
        scene.class_logits, scene.full_logits, scene.is_thing, config
    )
    assert np.array_equal(got.segment_map.numpy(), segment_map)
    assert got.labels.tolist() == [label for label, _, _ in segments]
    assert got.is_thing.tolist() == [is_thing for _, is_thing, _ in segments]
    np.testing.assert_allclose(got.scores, [score for _, _, score in segments], atol=1e-5)
    return len(segments)


def test_random_scenes_equal_the_definition():
    numbers, merged = [], 0
    for seed in range(240):
        scene = slow.random_scene(seed)
        numbers.append(assert_equals_the_definition(scene, settings(seed)))
        apart = result_of(scene._replace(is_thing=torch.ones_like(scene.is_thing)), settings(seed))
        merged += len(apart.labels) > numbers[-1]
    assert min(numbers) == 0
    assert sum(number > 3 for number in numbers) > 40
    assert merged > 15


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('num_queries', [1, 20])
def test_few_classes_and_queries_equal_the_definition(num_classes, num_queries):
    for seed in range(20):
        scene = slow.random_scene(seed, num_queries, num_classes)
        assert_equals_the_definition(scene, settings(seed))


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    scenes = [slow.random_scene(seed) for seed in range(0, 120, 3)]
    before = [result_of(scene, settings(seed)) for seed, scene in enumerate(scenes)]
    for max_queries in (1, 3):
        monkeypatch.setattr(chunks, 'CHUNK_BYTES', max_queries * 4 * 1000)
        for seed, (scene, wanted) in enumerate(zip(scenes, before, strict=True)):
            got = result_of(scene, settings(seed))
            assert all(torch.equal(part, other) for part, other in zip(got, wanted, strict=True))


def test_segments_by_hand():
    # Two things of class 0, stuff of class 1 in two queries, a query of no-object.
    class_logits = logits_of(
        [0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.01, 0.01, 0.98], [0.8, 0.1, 0.1], [0.05, 0.9, 0.05]
    )
    mask_logits = 9 * torch.tensor(
        [
            [[1, 1, -1, -1, -1, -1, -1.0]],
            [[-1, -1, 1, -1, -1, -1, -1]],
            [[1, 1, 1, 1, 1, 1, 1]],
            [[-1, -1, -1, 1, 1, -1, -1]],
            [[-1, -1, -1, -1, -1, 1, -1]],
        ]
    )
    got = at_full_size(class_logits, mask_logits, torch.tensor([True, False]), config())
    assert got.segment_map.tolist() == [[1, 1, 2, 3, 3, 2, 0]]
    assert got.segment_map.dtype == torch.int32
    assert got.labels.tolist() == [0, 1, 0]
    assert got.is_thing.tolist() == [True, False, True]
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.9, 0.8]))


def test_without_the_intersection_a_segment_keeps_all_it_leads():
    # The first two lead beyond their masks; the third has no mask at all, whatever it leads.
    class_logits = logits_of([0.9, 0.1], [0.7, 0.3], [0.6, 0.4])
    probs = torch.tensor(
        [
            [[0.9, 0.9, 0.4, 0.2, 0.01, 0.01]],
            [[0.1, 0.1, 0.1, 0.3, 0.7, 0.01]],
            [[0.1, 0.1, 0.1, 0.1, 0.1, 0.49]],
        ]
    )
    things = torch.tensor([True])
    official = at_full_size(class_logits, probs.logit(), things, config(overlap_thr=0.5))
    theirs = at_full_size(
        class_logits, probs.logit(), things, config(overlap_thr=0.5), within_masks=False
    )
    assert official.segment_map.tolist() == [[1, 1, 0, 0, 2, 0]]
    assert theirs.segment_map.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert official.labels.tolist() == theirs.labels.tolist() == [0, 0]


def test_things_and_stuff_follow_the_table_and_not_the_order_of_classes():
    class_logits = logits_of(*4 * [[0.9, 0.05, 0.05]])
    mask_logits = 9 * (2 * torch.eye(4)[:, None] - 1)
    things = at_full_size(class_logits, mask_logits, torch.tensor([True, False]), config())
    stuff = at_full_size(class_logits, mask_logits, torch.tensor([False, True]), config())
    assert things.segment_map.tolist() == [[1, 2, 3, 4]]
    assert stuff.segment_map.tolist() == [[1, 1, 1, 1]]
    assert stuff.labels.tolist() == [0]


def test_a_dropped_stuff_query_does_not_hide_the_next_of_its_class():
    # The first loses all of its mask to a surer thing; the second becomes segment 2.
    class_logits = logits_of([0.2, 0.6, 0.2], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1])
    mask_logits = 9 * torch.tensor([[[1.0, -1]], [[1, -1]], [[-1, 1]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True, False]), config())
    assert got.segment_map.tolist() == [[1, 2]]
    assert got.labels.tolist() == [0, 1]
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.7]))


def test_a_class_probability_at_the_threshold_is_dropped():
    class_logits, mask_logits = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, 2)
    exact = class_logits.softmax(-1)[0, 0].item()
    is_thing = torch.tensor([True])

    def number(threshold):
        return len(at_full_size(class_logits, mask_logits, is_thing, config(threshold)).labels)

    below = np.nextafter(np.float32(exact), np.float32(0)).item()
    assert [number(threshold) for threshold in (0.0, below, exact)] == [1, 1, 0]


@pytest.mark.parametrize(('threshold', 'kept'), [(0.8, True), (0.81, False), (0.79, True)])
def test_an_overlap_at_the_threshold_is_kept(threshold, kept):
    # The weaker mask has five pixels and wins four: 4 / 5 is 0.8 exactly.
    class_logits = logits_of([0.95, 0.05], [0.9, 0.1])
    mask_logits = 9 * torch.tensor([[[1.0, -1, -1, -1, -1]], [[1, 1, 1, 1, 1]]])
    is_thing = torch.tensor([True])
    got = at_full_size(class_logits, mask_logits, is_thing, config(overlap_thr=threshold))
    assert got.segment_map.tolist() == [[1, 2, 2, 2, 2] if kept else [1, 0, 0, 0, 0]]


def test_pixels_won_outside_the_mask_count_for_the_overlap_but_stay_void():
    # Query 1 has two mask pixels and loses one; it wins two more with probabilities below 1/2.
    class_logits = logits_of([0.95, 0.05], [0.9, 0.1])
    mask_logits = torch.tensor([[[9.0, -9, -9, -9]], [[8, 8, -1, -1]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True]), config(overlap_thr=1.0))
    assert got.segment_map.tolist() == [[1, 2, 0, 0]]


def test_a_probability_of_one_half_is_inside():
    class_logits = logits_of([0.95, 0.05])
    mask_logits = torch.tensor([[[0.0, -1e-3, 1e-3]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True]), config())
    assert got.segment_map.tolist() == [[1, 0, 1]]


def test_a_query_that_wins_only_outside_its_mask_is_no_segment():
    # Query 1 wins pixels 1 to 3, none of them in its mask; its only mask pixel goes to query 0.
    class_logits = logits_of([0.95, 0.05], [0.9, 0.1])
    mask_logits = torch.tensor([[[9.0, -9, -9, -9]], [[1, -1, -1, -1]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True]), config(overlap_thr=0.0))
    assert got.segment_map.tolist() == [[1, 0, 0, 0]]
    assert len(got.labels) == 1


@pytest.mark.parametrize('chunk', [1, 2, 25])
def test_equals_go_to_the_earlier_query(monkeypatch, chunk):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', chunk * 4 * 2 * 2)
    class_logits = logits_of([0.05, 0.9, 0.05], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05])
    mask_logits = torch.full((3, 2, 2), 3.0)
    got = at_full_size(class_logits, mask_logits, torch.tensor([True, True]), config())
    assert got.segment_map.tolist() == [[1, 1], [1, 1]]
    assert got.labels.tolist() == [1]


def test_no_query_is_sure_enough():
    scene = slow.random_scene(1)
    got = result_of(scene, config(object_mask_thr=1.0))
    assert [tuple(part.shape) for part in got] == [scene.original, (0,), (0,), (0,)]
    assert not got.segment_map.any()
    assert (got.segment_map.dtype, got.is_thing.dtype) == (torch.int32, torch.bool)


def test_only_kept_queries_are_restored(monkeypatch):
    restored = []

    def restore(mask_logits, geometry):
        restored.append(len(mask_logits))
        return restore_masks(mask_logits, geometry)

    monkeypatch.setattr(postprocess_panoptic, 'restore_masks', restore)
    class_logits = torch.tensor([0.0, 0, 9]).repeat(100, 1)
    class_logits[[3, 50, 51, 99]] = torch.tensor([0.0, 9, 0])
    class_logits[60] = torch.tensor([1.0, 0, 0])  # unsure
    mask_logits = torch.randn(100, 4, 5)
    at_full_size(class_logits, mask_logits, torch.tensor([True, False]), config(0.8))
    assert sum(restored) == 4


def test_waits_for_the_device_do_not_grow_with_the_segments():
    mask_logits, is_thing = torch.randn(100, 8, 10), torch.tensor([True, False])
    for number in (0, 1, 10, 100):
        class_logits = torch.tensor([0.0, 0, 9]).repeat(100, 1)
        class_logits[:number] = torch.tensor([9.0, 0, 0])
        with Watch() as watch:
            at_full_size(class_logits, mask_logits, is_thing, config(0.8, 0.0))
        assert watch.waits == ['aten::nonzero', 'aten::bincount']


def test_only_a_chunk_exists_at_full_size(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 5 * 64 * 80)
    geometry = ImageGeometry((32, 40), (30, 40), (64, 80))
    class_logits = torch.tensor([9.0, 0]).repeat(100, 1)
    with Watch() as watch:
        panoptic(class_logits, torch.randn(100, 8, 10), geometry, torch.tensor([True]), config())
    assert watch.largest == 5 * 64 * 80


def test_inputs_are_not_changed_and_half_types_work():
    scene = 3 * torch.randn(9, 4).half(), torch.randn(9, 8, 10).half()
    before = [part.clone() for part in scene]
    is_thing = torch.tensor([True, False, True])
    got = at_full_size(*scene, is_thing, config(overlap_thr=0.0))
    assert all(torch.equal(part, kept) for part, kept in zip(scene, before, strict=True))
    in_float = [part.float() for part in scene]
    in_float = at_full_size(*in_float, is_thing, config(0.5, 0.0))
    assert all(torch.equal(part, other) for part, other in zip(got, in_float, strict=True))
    assert len(got.labels) > 0
