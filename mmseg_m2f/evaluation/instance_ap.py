"""Average precision of instance masks, exactly as COCO computes it.

faster-coco-eval or pycocotools does the computation, with the same numbers. Boundary AP (Cheng et
al., CVPR 2021) needs faster-coco-eval. Instances are in COCO's terms: ``category_id``,
``segmentation`` (polygons or run lengths), and either ``score``, or ``area`` and ``iscrowd``.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments
from mmseg_m2f.evaluation.rle import encode_masks

Instances = list[dict[str, Any]]

# COCO's area ranges, in its order. Their limits are 32**2 and 96**2 pixels.
AREAS = ('all', 's', 'm', 'l')


@dataclass(frozen=True, kw_only=True)
class ImageInstances:
    """The predicted and true instances of an image file of ``size (height, width)``."""

    image_id: int | str
    size: tuple[int, int]
    predicted: Instances
    true: Instances


def predicted_instances(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, category_ids: Sequence[int]
) -> Instances:
    """Convert ``masks (N, H, W)`` bool, class indices and scores ``(N,)`` to COCO's instances.

    They get no box, because COCO's evaluation would take the area of the instance from the box.
    """
    return [
        {'category_id': int(category_ids[label]), 'segmentation': rle, 'score': float(score)}
        for rle, label, score in zip(encode_masks(masks), labels, scores, strict=True)
    ]


def true_instances(
    truth: AnnotatedSegments, is_thing: np.ndarray, category_ids: Sequence[int]
) -> Instances:
    """Convert the things of a panoptic ground truth that have a pixel to COCO's instances."""
    areas = np.bincount(truth.segment_map.ravel(), minlength=1 + len(truth.labels))[1:]
    chosen = np.flatnonzero(is_thing[truth.labels] & (areas > 0))
    masks = truth.segment_map == 1 + chosen[:, None, None]
    return [
        {
            'category_id': int(category_ids[truth.labels[index]]),
            'segmentation': rle,
            'area': float(areas[index]),
            'iscrowd': int(truth.is_crowd[index]),
        }
        for index, rle in zip(chosen, encode_masks(masks), strict=True)
    ]


def has_faster_coco_eval() -> bool:
    """Return True if faster-coco-eval can be imported."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        return False
    return True


def instance_scores(
    images: Sequence[ImageInstances],
    category_ids: Sequence[int],
    max_dets: int = 100,
    iou_type: str = 'segm',
    faster: bool = False,
) -> tuple[dict[str, float], np.ndarray]:
    """Compute COCO's AP of all images together.

    Return the averages over all classes by name, and ``(K, 3)`` AP, AP50 and AP75 per class, in
    [0, 1]. The AP of an area without a true instance is -1, as in COCO, that of a class NaN. If
    nothing is predicted at all, or nothing is true at all, every average is 0.

    Args:
        images: all images of the test, also those without instances.
        category_ids: the category ids to score, in the order of the result's classes.
        max_dets: how many instances with the best scores count, per image and class.
        iou_type: ``segm``, or ``boundary`` (needs faster-coco-eval).
        faster: use faster-coco-eval, else pycocotools.
    """
    true_ids = {i['category_id'] for image in images for i in image.true if not i['iscrowd']}
    if not true_ids or not any(image.predicted for image in images):
        is_there = np.isin(category_ids, list(true_ids))[:, None]
        return _averages(np.zeros((10, 1, 1, 4))), np.where(is_there, np.zeros(3), np.nan)
    precision = _precision(images, category_ids, max_dets, iou_type, faster)
    per_class = np.empty((len(category_ids), 3))
    for row, index in enumerate(np.argsort(category_ids)):  # COCO sorts the classes by id
        of_class = _averages(precision[:, :, [row]])
        per_class[index] = of_class['mAP'], of_class['mAP_50'], of_class['mAP_75']
    per_class[per_class < 0] = np.nan
    return _averages(precision), per_class


def _averages(precision: np.ndarray) -> dict[str, float]:
    every_area = precision[..., 0]
    parts = {'mAP': every_area, 'mAP_50': every_area[:1], 'mAP_75': every_area[5:6]}
    parts |= {f'mAP_{area}': precision[..., index] for index, area in enumerate(AREAS[1:], 1)}
    defined = {name: part[part > -1] for name, part in parts.items()}
    return {name: float(part.mean()) if len(part) else -1.0 for name, part in defined.items()}


def _precision(
    images: Sequence[ImageInstances],
    category_ids: Sequence[int],
    max_dets: int,
    iou_type: str,
    faster: bool,
) -> np.ndarray:
    """Return COCO's precision ``(10 thresholds, 101 recalls, K classes by rising id, 4 areas)``."""
    if faster:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    # The order of the images decides between equal scores; COCO sorts them by id.
    images = sorted(images, key=lambda image: image.image_id)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            'info': {},
            'images': [
                {'id': i, 'height': image.size[0], 'width': image.size[1]}
                for i, image in enumerate(images)
            ],
            'categories': [{'id': int(i), 'name': str(i)} for i in category_ids],
            'annotations': _numbered(image.true for image in images),
        }
        truth.createIndex()
        predicted = truth.loadRes(_numbered(image.predicted for image in images))
        evaluation = COCOeval(truth, predicted, iou_type)
        evaluation.params.catIds = sorted(int(i) for i in category_ids)
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval['precision'])[..., -1]


def _numbered(per_image: Iterable[Instances]) -> Instances:
    """Copy the instances, which the libraries write into, and number them from 1.

    An id of 0 would mean "no match" to them.
    """
    pairs = [(i, instance) for i, instances in enumerate(per_image) for instance in instances]
    return [
        {**instance, 'image_id': image, 'id': number}
        for number, (image, instance) in enumerate(pairs, 1)
    ]
