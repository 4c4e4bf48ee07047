"""Mean IoU of label maps, as mmseg's ``IoUMetric`` defines it."""

import numpy as np

NO_CLASS = -1


def class_areas(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels of each class in one image: ``(3, K)`` common, true and predicted ones.

    The results of several images are added. ``truth`` and ``predicted (H, W)`` are class indices;
    pixels whose true label is `NO_CLASS` are left out.

    Raises:
        ValueError: the maps differ in size, or one holds a label that is no class.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f'the prediction is {predicted.shape} pixels (height, width), the ground truth '
            f'{truth.shape}'
        )
    is_labeled = truth != NO_CLASS
    truth, predicted = truth[is_labeled].astype(np.int64), predicted[is_labeled].astype(np.int64)
    for name, labels in (('ground truth', truth), ('prediction', predicted)):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(
                f'the {name} holds labels {np.unique(wrong)[:8].tolist()}, the classes are 0 to '
                f'{num_classes - 1}'
            )
    common = truth[truth == predicted]
    return np.stack(
        [np.bincount(labels, minlength=num_classes) for labels in (common, truth, predicted)]
    )


def semantic_quality(areas: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute IoU and accuracy per class ``(K,)``, and of all pixels, from summed `class_areas`.

    All are in [0, 1], NaN for a class that does not occur.
    """
    common, true, predicted = areas
    with np.errstate(invalid='ignore'):  # 0 / 0 is NaN
        iou, accuracy = common / (true + predicted - common), common / true
    return iou, accuracy, float(common.sum() / max(true.sum(), 1))
