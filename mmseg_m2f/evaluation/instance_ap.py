"""Average precision of instance masks, exactly as COCO computes it.

faster-coco-eval or pycocotools does the computation, with the same numbers. Boundary AP (Cheng et
al., CVPR 2021) needs faster-coco-eval.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments
from mmseg_m2f.evaluation.rle import encode_masks

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# COCO's area ranges, in its order. Their limits are 32**2 and 96**2 pixels.
AREAS = ('all', 's', 'm', 'l')


@dataclass(frozen=True, kw_only=True)
class ImageInstances:
    """Predicted and true instances of one image, in COCO's terms.

    Args:
        image_id: number or name of the image.
        size: ``(height, width)`` of the image file.
        predicted: instances with ``category_id``, ``segmentation`` (run lengths) and ``score``.
        true: instances with ``category_id``, ``segmentation``, ``area`` and ``iscrowd``. A
            ``bbox`` is not needed.
    """

    image_id: int | str
    size: tuple[int, int]
    predicted: list[dict[str, Any]]
    true: list[dict[str, Any]]


class InstanceScores(NamedTuple):
    """APs over all classes by name, and ``per_class (K, 3)``: AP, AP50 and AP75 in [0, 1].

    An AP is -1 (undefined) if there is no true instance of the class, or of the area. If nothing
    is predicted at all, or nothing is true at all, every average is 0.
    """

    average: dict[str, float]
    per_class: np.ndarray


def predicted_instances(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Convert instances to COCO's result format, without the image id.

    They get no box, because COCO's evaluation would take the area of the instance from the box.
    """
    return [
        {'category_id': int(category_ids[label]), 'segmentation': rle, 'score': float(score)}
        for rle, label, score in zip(
            encode_masks(masks), labels.tolist(), scores.tolist(), strict=True
        )
    ]


def true_instances(
    truth: AnnotatedSegments, is_thing: np.ndarray, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Convert the things of a panoptic ground truth to COCO instances."""
    chosen = np.flatnonzero(is_thing[truth.labels])
    masks = truth.segment_map == 1 + chosen[:, None, None]
    instances: list[dict[str, Any]] = [
        {
            'category_id': int(category_ids[truth.labels[index]]),
            'segmentation': rle,
            'area': float(masks[row].sum()),
            'iscrowd': int(truth.is_crowd[index]),
        }
        for row, (index, rle) in enumerate(zip(chosen, encode_masks(masks), strict=True))
    ]
    return [instance for instance in instances if instance['area'] > 0]


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
) -> InstanceScores:
    """Compute COCO's AP of all images together.

    Args:
        images: all images of the test, also those without instances.
        category_ids: the category ids to score, in the order of the result's classes.
        max_dets: how many instances with the best scores count, per image and class.
        iou_type: ``segm``, or ``boundary`` (needs faster-coco-eval).
        faster: use faster-coco-eval, else pycocotools.
    """
    true_ids = {
        instance['category_id']
        for image in images
        for instance in image.true
        if not instance['iscrowd']
    }
    if not true_ids or not any(image.predicted for image in images):
        zeros = np.zeros((len(IOU_THRESHOLDS), 1, len(category_ids), len(AREAS)))
        is_there = np.isin(category_ids, list(true_ids))[:, None]
        return InstanceScores(_averages(zeros), np.where(is_there, np.zeros(3), -1.0))
    order = np.argsort(category_ids, kind='stable')
    precision = _precision(images, category_ids, max_dets, iou_type, faster)
    per_class = np.empty((len(category_ids), 3))
    # COCO sorts the classes by id.
    for row, index in enumerate(order):
        of_class = precision[:, :, row, 0]
        per_class[index] = [_mean(of_class), _mean(of_class[:1]), _mean(of_class[5:6])]
    return InstanceScores(_averages(precision), per_class)


def _averages(precision: np.ndarray) -> dict[str, float]:
    every_area = precision[..., 0]
    parts = {'mAP': every_area, 'mAP_50': every_area[:1], 'mAP_75': every_area[5:6]}
    parts |= {f'mAP_{area}': precision[..., index] for index, area in enumerate(AREAS[1:], 1)}
    return {name: _mean(part) for name, part in parts.items()}


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


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


def _numbered(per_image: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Copy the instances and number them from 1.

    The libraries write into their input, and use 0 for "no match".
    """
    pairs = [(i, instance) for i, instances in enumerate(per_image) for instance in instances]
    return [
        {**instance, 'image_id': image, 'id': number}
        for number, (image, instance) in enumerate(pairs, 1)
    ]
