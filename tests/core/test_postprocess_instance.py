import numpy as np
import pytest
import torch

from mmseg_m2f.core import chunks, postprocess_instance
from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import restore_masks
from mmseg_m2f.core.postprocess_instance import instances
from tests.core import slow_postprocess as slow
from tests.core.watching import Watch

SIGMOID_1, SIGMOID_2 = 0.7310586, 0.8807971
ONE_THING = torch.tensor([True])


def at_full_size(class_logits, mask_logits, is_thing, **settings):
    """The result of mask logits that have the size of the image already."""
    geometry = slow.at(*mask_logits.shape[1:])
    return instances(class_logits, mask_logits, geometry, is_thing, PostprocessConfig(**settings))


def test_random_scenes_equal_the_definition():
    numbers = []
    for seed, scene in enumerate(slow.random_scenes()):
        config = PostprocessConfig(
            max_per_image=(100, 7, 1000)[seed % 3],
            score_thr=(0.0, 0.3)[seed % 2],
            non_overlap=seed % 5 == 0,
        )
        every = scene._replace(is_thing=torch.ones_like(scene.is_thing))  # no class is filtered
        for one in (scene, every):
            got, expected = instances(*one, config), slow.instances(one, config)
            assert got.labels.tolist() == [label for _, label, _ in expected]
            np.testing.assert_allclose(got.scores, [score for score, _, _ in expected], atol=1e-5)
            for mask, box, (_, _, wanted) in zip(got.masks, got.boxes, expected, strict=True):
                assert np.array_equal(mask, wanted)
                y, x = wanted.nonzero()
                around = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4
                assert box.tolist() == around
            numbers.append(len(expected))
    assert min(numbers) == 0
    assert sum(number > 10 for number in numbers) > 120


@pytest.mark.parametrize('score_thr', [0.0, 0.2, 1.0])
def test_encoded_masks_are_the_codes_of_the_masks(monkeypatch, score_thr):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 7 * 500)

    def encode(masks):
        return [mask.flatten().nonzero()[:, 0].tolist() for mask in masks]

    for seed in range(5):
        scene = slow.random_scene(seed)
        plain = instances(*scene, PostprocessConfig(score_thr=score_thr))
        config = PostprocessConfig(score_thr=score_thr, mask_format='rle')
        coded = instances(*scene, config, encode)
        for name in ('labels', 'scores', 'boxes'):
            assert torch.equal(getattr(coded, name), getattr(plain, name))
        assert coded.masks == encode(plain.masks)


def test_one_query_with_two_labels_by_hand():
    # Class probabilities (0.6, 0.3) and no-object 0.1; the mean mask probability is inside only.
    class_logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    mask_logits = torch.tensor([[[1.0, 2.0, -5.0], [0.0, -1.0, -1.0]]])
    got = at_full_size(class_logits, mask_logits, torch.tensor([True, True]), max_per_image=2)
    quality = (SIGMOID_1 + SIGMOID_2) / 2
    assert got.labels.tolist() == [0, 1]
    torch.testing.assert_close(got.scores, torch.tensor([0.6 * quality, 0.3 * quality]))
    # A logit of exactly 0 lies outside.
    assert got.masks.int().tolist() == 2 * [[[1, 1, 0], [0, 0, 0]]]
    assert got.boxes.tolist() == 2 * [[0, 0, 2, 1]]


def test_stuff_counts_for_the_limit_and_is_dropped_after_it():
    class_logits = torch.tensor([[9.0, 0, 0], [8.0, 0, 0], [0, 7.0, 0], [0, 6.0, 0]])
    is_thing = torch.tensor([False, True])
    for number, things in ((1, 0), (2, 0), (3, 1), (4, 2)):
        got = at_full_size(class_logits, torch.ones(4, 2, 2), is_thing, max_per_image=number)
        assert got.labels.tolist() == things * [1]


def test_equal_scores_keep_the_order_of_queries_and_classes():
    class_logits, mask_logits = torch.zeros(4, 4), torch.ones(4, 2, 2)
    mask_logits[0::2, 0, 0] = mask_logits[1::2, 1, 1] = -1
    got = at_full_size(class_logits, mask_logits, torch.ones(3).bool(), max_per_image=7)
    assert got.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert got.masks[:, 0, 0].tolist() == 3 * [False] + 3 * [True] + [False]


def test_a_score_at_the_threshold_is_kept():
    # Class probability 1/2 for each of both queries, quality 1 and sigmoid(1).
    scene = torch.zeros(2, 2), torch.tensor([[[100.0, -1.0]], [[1.0, -1.0]]]), ONE_THING
    best, second = at_full_size(*scene).scores.tolist()
    above_second = np.nextafter(np.float32(second), np.float32(1)).item()
    for score_thr, number in ((0.0, 2), (second, 2), (above_second, 1), (best, 1), (0.51, 0)):
        assert len(at_full_size(*scene, score_thr=score_thr).labels) == number


def test_an_empty_mask_scores_zero_and_has_no_box():
    class_logits = torch.tensor([[9.0, 0.0], [8.0, 0.0]])
    mask_logits = torch.stack([torch.full((3, 4), -2.0), torch.full((3, 4), 2.0)])
    got = at_full_size(class_logits, mask_logits, ONE_THING)
    assert got.scores[1] == 0
    assert got.boxes.tolist() == [[0, 0, 4, 3], [0, 0, 0, 0]]
    for settings in ({'score_thr': 0.1}, {'non_overlap': True}):
        assert len(at_full_size(class_logits, mask_logits, ONE_THING, **settings).labels) == 1


@pytest.mark.parametrize('non_overlap', [False, True])
def test_nothing_is_found(non_overlap):
    scene = slow.random_scene(1)
    nothing = torch.zeros_like(scene.is_thing)
    got = instances(*scene[:3], nothing, PostprocessConfig(non_overlap=non_overlap))
    size = scene.geometry.original
    assert [tuple(part.shape) for part in got] == [(0,), (0,), (0, *size), (0, 4)]
    assert got.masks.dtype == torch.bool
    assert got.labels.dtype == torch.int64


def test_pixels_go_to_the_best_instance():
    class_logits = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]]).log()
    mask_logits = torch.tensor([[1, 1, 1, 1.0], [1, 1, -1, -1], [1, -1, 1, -1]])[:, None] * 50
    got = at_full_size(class_logits, mask_logits, ONE_THING, non_overlap=True)
    torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.5, 0.4]))
    assert got.masks[:, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert got.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 1], [3, 0, 4, 1]]
    # Of two equal masks only the better one is left.
    same = mask_logits[:1].repeat(2, 1, 1)
    got = at_full_size(class_logits[:2], same, ONE_THING, non_overlap=True)
    torch.testing.assert_close(got.scores, torch.tensor([0.9]))


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
    scene = class_logits, torch.randn(30, 4, 5), is_thing
    # Three queries are scored; each of twelve instances gets its mask.
    assert len(at_full_size(*scene, max_per_image=15).labels) == 12
    assert restored == [3, 12]
    # A query that cannot reach score_thr is not restored at all.
    restored.clear()
    at_full_size(*scene, max_per_image=15, score_thr=0.99)
    assert sum(restored) == 0


@pytest.mark.parametrize(('non_overlap', 'waits'), [(False, 3), (True, 4)])
def test_waits_for_the_device_do_not_grow_with_the_instances(non_overlap, waits):
    scene = 3 * torch.randn(100, 4), torch.randn(100, 8, 10), torch.ones(3).bool()
    for number in (1, 10, 100):
        with Watch() as watch:
            at_full_size(*scene, max_per_image=number, non_overlap=non_overlap)
        assert len(watch.waits) == waits
