import numpy as np
import pytest
import torch

from mmseg_m2f.core import chunks, postprocess_instance
from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import restore_masks
from mmseg_m2f.core.postprocess_instance import instances
from mmseg_m2f.core.structures import ImageGeometry
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch

SIGMOID_1, SIGMOID_2 = 0.7310586, 0.8807971


def at_full_size(class_logits, mask_logits, *settings, **keys):
    """The result of mask logits that have the size of the image already."""
    size = mask_logits.shape[1], mask_logits.shape[2]
    geometry = ImageGeometry(size, size, size)
    return instances(class_logits, mask_logits, geometry, *settings, **keys)


def settings(seed):
    return PostprocessConfig(
        max_per_image=(100, 7, 1000)[seed % 3],
        score_thr=(0.0, 0.3)[seed % 2],
        non_overlap=seed % 5 == 0,
    )


def result_of(scene, config, is_thing=None, encode=None):
    is_thing = scene.is_thing if is_thing is None else is_thing
    prediction = scene.class_logits, scene.mask_logits, scene.geometry
    return instances(*prediction, is_thing, config, encode)


def assert_equals_the_definition(scene, config, is_thing):
    got = result_of(scene, config, is_thing)
    expected = slow.instances(scene.class_logits, scene.full_logits, is_thing, config)
    assert got.labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(got.scores, [score for score, _, _ in expected], atol=1e-5)
    for mask, (_, _, wanted) in zip(got.masks.numpy(), expected, strict=True):
        assert np.array_equal(mask, wanted)
    return len(expected)


def test_random_scenes_equal_the_definition():
    numbers = []
    for seed in range(240):
        scene, config = slow.random_scene(seed), settings(seed)
        numbers.append(assert_equals_the_definition(scene, config, scene.is_thing))
        every = torch.ones_like(scene.is_thing)  # an instance model: no class is filtered
        assert_equals_the_definition(scene, config, every)
    assert min(numbers) == 0
    assert sum(number > 10 for number in numbers) > 60


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    scenes = [slow.random_scene(seed) for seed in range(0, 90, 3)]
    before = [result_of(scene, settings(seed)) for seed, scene in enumerate(scenes)]
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 2 * 500)
    for seed, (scene, wanted) in enumerate(zip(scenes, before, strict=True)):
        got = result_of(scene, settings(seed))
        assert torch.equal(got.labels, wanted.labels)
        assert torch.equal(got.masks, wanted.masks)
        assert torch.equal(got.boxes, wanted.boxes)
        torch.testing.assert_close(got.scores, wanted.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize('score_thr', [0.0, 0.2, 1.0])
def test_encoded_masks_are_the_codes_of_the_masks(monkeypatch, score_thr):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 7 * 500)

    def encode(masks):
        return [mask.flatten().nonzero()[:, 0].tolist() for mask in masks]

    for seed in range(5):
        scene = slow.random_scene(seed)
        plain = result_of(scene, config(score_thr=score_thr))
        coded = result_of(scene, config(score_thr=score_thr, mask_format='rle'), encode=encode)
        for name in ('labels', 'scores', 'boxes'):
            assert torch.equal(getattr(coded, name), getattr(plain, name))
        assert coded.masks == encode(plain.masks)


def test_one_query_with_two_labels_by_hand():
    # Class probabilities (0.6, 0.3) and no-object 0.1; the mean mask probability is inside only.
    class_logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    mask_logits = torch.tensor([[[1.0, 2.0, -5.0], [0.0, -1.0, -1.0]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True, True]), config(2))
    quality = (SIGMOID_1 + SIGMOID_2) / 2
    assert got.labels.tolist() == [0, 1]
    torch.testing.assert_close(got.scores, torch.tensor([0.6 * quality, 0.3 * quality]))
    # A logit of exactly 0 lies outside.
    assert got.masks.int().tolist() == 2 * [[[1, 1, 0], [0, 0, 0]]]
    assert got.boxes.tolist() == 2 * [[0, 0, 2, 1]]


def config(max_per_image=100, **keys):
    return PostprocessConfig(max_per_image=max_per_image, **keys)


def test_stuff_counts_for_the_limit_and_is_dropped_after_it():
    class_logits = torch.tensor([[9.0, 0, 0], [8.0, 0, 0], [0, 7.0, 0], [0, 6.0, 0]])
    is_thing = torch.tensor([False, True])
    mask_logits = torch.ones(4, 2, 2)
    for number, things in ((1, 0), (2, 0), (3, 1), (4, 2)):
        got = at_full_size(class_logits, mask_logits, is_thing, config(number))
        assert got.labels.tolist() == things * [1]


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('num_queries', [1, 20])
def test_fewer_pairs_than_asked_for(num_classes, num_queries):
    scene = slow.random_scene(5, num_queries, num_classes)
    every = torch.ones(num_classes, dtype=torch.bool)
    got = result_of(scene, config(100), every)
    assert len(got.labels) == min(num_queries * num_classes, 100)
    assert (got.scores[:-1] >= got.scores[1:]).all()


def test_equal_scores_keep_the_order_of_queries_and_classes():
    class_logits, mask_logits = torch.zeros(4, 4), torch.ones(4, 2, 2)
    mask_logits[0::2, 0, 0] = mask_logits[1::2, 1, 1] = -1
    got = at_full_size(class_logits, mask_logits, torch.ones(3, dtype=torch.bool), config(7))
    assert got.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert got.masks[:, 0, 0].tolist() == 3 * [False] + 3 * [True] + [False]


def test_a_score_at_the_threshold_is_kept():
    # Class probability 1/2 for each of both queries, quality 1 and sigmoid(1).
    class_logits = torch.zeros(2, 2)
    mask_logits = torch.tensor([[[100.0, -1.0]], [[1.0, -1.0]]])
    is_thing = torch.tensor([True])

    def number(score_thr):
        found = at_full_size(class_logits, mask_logits, is_thing, config(score_thr=score_thr))
        assert (found.scores >= score_thr).all()
        return len(found.labels)

    exact = at_full_size(class_logits, mask_logits, is_thing, config()).scores.tolist()
    assert [number(threshold) for threshold in (0.0, exact[1], exact[0])] == [2, 2, 1]
    assert number(np.nextafter(np.float32(exact[1]), np.float32(1)).item()) == 1
    assert number(0.51) == 0


def test_an_empty_mask_scores_zero_and_has_no_box():
    class_logits = torch.tensor([[9.0, 0.0], [8.0, 0.0]])
    mask_logits = torch.stack([torch.full((3, 4), -2.0), torch.full((3, 4), 2.0)])
    is_thing = torch.tensor([True])
    got = at_full_size(class_logits, mask_logits, is_thing, config())
    assert got.scores[1] == 0
    assert got.boxes.tolist() == [[0, 0, 4, 3], [0, 0, 0, 0]]
    assert len(at_full_size(class_logits, mask_logits, is_thing, config(score_thr=0.1))[0]) == 1
    assert len(at_full_size(class_logits, mask_logits, is_thing, config(non_overlap=True))[0]) == 1


def test_nothing_is_found():
    scene = slow.random_scene(1)
    for keys in ({}, {'non_overlap': True}):
        got = result_of(scene, config(**keys), torch.zeros_like(scene.is_thing))
        assert [tuple(part.shape) for part in got] == [(0,), (0,), (0, *scene.original), (0, 4)]
        assert got.masks.dtype == torch.bool
        assert got.labels.dtype == torch.int64


def test_pixels_go_to_the_best_instance():
    class_logits = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]]).log()
    mask_logits = torch.tensor([[1, 1, 1, 1.0], [1, 1, -1, -1], [1, -1, 1, -1]])[:, None] * 50
    is_thing = torch.tensor([True])
    got = at_full_size(class_logits, mask_logits, is_thing, config(non_overlap=True))
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.5, 0.4]))
    assert got.masks[:, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert got.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 1], [3, 0, 4, 1]]
    # Of two equal masks only the better one is left.
    got = at_full_size(
        class_logits[:2],
        mask_logits[:1].repeat(2, 1, 1),
        is_thing,
        config(non_overlap=True),
    )
    torch.testing.assert_close(got.scores, torch.tensor([0.9]))


def test_boxes_enclose_the_masks():
    for seed in range(20):
        got = result_of(slow.random_scene(seed), config())
        for mask, box in zip(got.masks.numpy(), got.boxes.tolist(), strict=True):
            y, x = mask.nonzero()
            wanted = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
            assert box == wanted


def test_a_query_is_scored_once_whatever_its_labels(monkeypatch):
    restored = []

    def restore(mask_logits, geometry):
        restored.append(len(mask_logits))
        return restore_masks(mask_logits, geometry)

    monkeypatch.setattr(postprocess_instance, 'restore_masks', restore)
    class_logits = torch.full((30, 6), -9.0)
    class_logits[:, 5] = 9
    class_logits[torch.tensor([4, 17, 20])] = torch.tensor([1.0, 2, 3, 4, 5, -9])
    is_thing = torch.tensor([True, True, True, True, False])
    scene = class_logits, torch.randn(30, 4, 5)
    got = at_full_size(*scene, is_thing, config(15))
    # Three queries are scored; each of twelve instances gets its mask.
    assert len(got.labels) == 12
    assert restored == [3, 12]
    # What cannot reach score_thr is not restored at all.
    restored.clear()
    at_full_size(*scene, is_thing, config(15, score_thr=0.99))
    assert sum(restored) == 0


def test_waits_for_the_device_do_not_grow_with_the_instances():
    scene = 3 * torch.randn(100, 4), torch.randn(100, 8, 10)
    is_thing = torch.ones(3, dtype=torch.bool)
    for keys, waits in (({}, 3), ({'non_overlap': True}, 4)):
        for number in (1, 10, 100):
            with Watch() as watch:
                at_full_size(*scene, is_thing, config(number, **keys))
            assert len(watch.waits) == waits


def test_only_a_chunk_exists_at_full_size(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 5 * 64 * 80)
    scene = torch.randn(100, 4), torch.randn(100, 8, 10)
    geometry = ImageGeometry((32, 40), (30, 40), (64, 80))
    with Watch() as watch:
        got = instances(*scene, geometry, torch.ones(3, dtype=torch.bool), config(100))
    assert len(got.masks) == 100
    assert watch.largest == 5 * 64 * 80


def test_inputs_are_not_changed_and_half_types_work():
    scene = torch.randn(9, 4).half(), torch.randn(9, 8, 10).half()
    before = [part.clone() for part in scene]
    got = at_full_size(*scene, torch.ones(3, dtype=torch.bool), config())
    assert all(torch.equal(part, kept) for part, kept in zip(scene, before, strict=True))
    in_float = [part.float() for part in scene]
    in_float = at_full_size(*in_float, torch.ones(3).bool(), config())
    assert all(torch.equal(part, other) for part, other in zip(got, in_float, strict=True))
    assert got.scores.dtype == torch.float32
