"""Post-processing once more, query by query and pixel map by pixel map, from the definition.

It shares no rule with the package: the stack of all masks at full size, then NumPy loops. Random
scenes that look like a trained model's output go with it.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from mmseg_m2f.core.structures import ImageGeometry


class Scene(NamedTuple):
    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    geometry: ImageGeometry
    is_thing: torch.Tensor

    @property
    def full_logits(self):
        """The stack of all queries, in two steps."""
        height, width = self.geometry.resized
        padded = resized(self.mask_logits, self.geometry.padded)
        return resized(padded[:, :height, :width], self.geometry.original)


def resized(maps, size):
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def at(*size):
    """The geometry of an image that is resized once."""
    return ImageGeometry(size, size, size)


def class_probabilities(class_logits):
    """Softmax in the network's precision, which decides between two nearly equal ones."""
    return class_logits.softmax(-1).numpy()


def semantic(class_logits, full_logits):
    """Sigmoid, weigh, sum."""
    probs = class_probabilities(class_logits)
    scores = np.zeros((probs.shape[1] - 1, *full_logits.shape[1:]))
    for query, logits in enumerate(full_logits.double().numpy()):
        mask = 1 / (1 + np.exp(-logits))
        for label in range(len(scores)):
            scores[label] += probs[query, label] * mask
    return scores


def instances(scene, config):
    """``(score, label, mask)``, best first."""
    probs, full_logits = class_probabilities(scene.class_logits), scene.full_logits
    num_queries, num_classes = probs.shape[0], probs.shape[1] - 1
    pairs = [(q, c) for q in range(num_queries) for c in range(num_classes)]
    pairs.sort(key=lambda pair: -probs[pair])
    found = []
    for query, label in pairs[: config.max_per_image]:
        if not scene.is_thing[label]:
            continue
        logits = full_logits[query].double().numpy()
        mask = logits > 0
        inside = (1 / (1 + np.exp(-logits[mask]))).sum()
        score = float(probs[query, label]) * inside / (mask.sum() + 1e-6)
        if score >= config.score_thr:
            found.append((score, label, mask))
    found.sort(key=lambda instance: -instance[0])
    if not config.non_overlap:
        return found
    taken, left = np.zeros(full_logits.shape[1:], dtype=bool), []
    for score, label, mask in found:
        own = mask & ~taken
        taken |= mask
        if own.any():
            left.append((score, label, own))
    return left


def panoptic(scene, config):
    """The segment map and ``(label, is_thing, score)`` of each segment."""
    probs = class_probabilities(scene.class_logits)
    masks = scene.full_logits.sigmoid().numpy()  # in the network's precision, as above
    no_object = probs.shape[1] - 1
    kept = [
        query
        for query in range(len(probs))
        if probs[query].argmax() != no_object and probs[query].max() > config.object_mask_thr
    ]
    segment_map = np.zeros(masks.shape[1:], dtype=np.int32)
    segments, stuff_id = [], {}
    if not kept:
        return segment_map, segments
    winner = np.argmax([probs[query].max() * masks[query] for query in kept], axis=0)
    for position, query in enumerate(kept):
        label = int(probs[query].argmax())
        is_thing = bool(scene.is_thing[label])
        won, mask = winner == position, masks[query] >= 0.5
        if won.sum() == 0 or mask.sum() == 0 or (won & mask).sum() == 0:
            continue
        if int(won.sum()) / int(mask.sum()) < config.overlap_thr:
            continue
        if not is_thing and label in stuff_id:
            segment_map[won & mask] = stuff_id[label]
            continue
        segments.append((label, is_thing, float(probs[query].max())))
        segment_map[won & mask] = len(segments)
        if not is_thing:
            stuff_id[label] = len(segments)
    return segment_map, segments


def random_scenes():
    """Many of 100 queries, then some of few queries and classes."""
    yield from (random_scene(seed) for seed in range(240))
    for num_queries, num_classes in itertools.product((1, 20), (1, 2)):
        yield from (random_scene(seed, num_queries, num_classes) for seed in range(20))


def random_scene(seed, num_queries=100, num_classes=None):
    """Sure queries with smooth masks among many that found nothing; copies, ties, empty scenes."""
    rng = np.random.default_rng(seed)
    num_classes = num_classes or int(rng.integers(1, 9))
    h, w = (int(n) for n in rng.integers(3, 10, 2))
    cropped = int(rng.integers(2 * h, 4 * h + 1)), int(rng.integers(2 * w, 4 * w + 1))
    original = tuple(int(n) for n in rng.integers(5, 45, 2))
    class_logits = rng.normal(size=(num_queries, num_classes + 1))
    # Nothing, a few, or most of the queries found something.
    num_found = int(num_queries * rng.choice([0, 0.1, 0.3, 0.9]))
    found = rng.permutation(num_queries)[:num_found]
    class_logits[:, -1] += 8
    class_logits[found, -1] -= 10
    class_logits[found, rng.integers(0, num_classes, num_found)] += rng.uniform(2, 9, num_found)
    masks = ellipses(rng, num_queries, h, w) * rng.uniform(1, 12)
    if seed % 3 == 0:  # whole numbers: exact zeros and exact ties
        masks = masks.round()
        cropped = original = 4 * h, 4 * w
    if seed % 2 == 0 and num_found > 1:  # two queries say the same
        first, second = found[:2]
        class_logits[second], masks[second] = class_logits[first], masks[first]
    if seed % 11 == 0:  # sure of classes, without a single pixel
        masks = -abs(masks) - 1
    is_thing = torch.from_numpy(rng.random(num_classes) < 0.5)
    logits = (torch.from_numpy(part).float() for part in (class_logits, masks))
    return Scene(*logits, ImageGeometry((4 * h, 4 * w), cropped, original), is_thing)


def ellipses(rng, number, height, width):
    """One a map: positive inside, of either sign at some of the borders."""
    y, x = np.mgrid[:height, :width]
    shape = (number, 1, 1)
    center_y, center_x = rng.uniform(0, height, shape), rng.uniform(0, width, shape)
    radius_y = rng.uniform(0.1, 0.6, shape) * height
    radius_x = rng.uniform(0.1, 0.6, shape) * width
    distance = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2
    return 1 - np.minimum(distance, 4) + 0.1 * rng.normal(size=(number, height, width))
