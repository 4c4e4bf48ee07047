"""Annotations to ``MaskTarget`` (spec: one boolean mask per class or segment)."""

import torch
from jaxtyping import Int
from torch import Tensor

from mmseg_m2f.core.structures import MaskTarget


def label_map_target(
    label_map: Int[Tensor, 'H W'], num_classes: int, ignore_index: int = 255
) -> MaskTarget:
    """One mask per class that occurs, in ascending order of the label.

    Pixels of ``ignore_index`` belong to no mask, so they count as negative for each: the official
    rule. A map of nothing else gives a target with no masks.

    Raises:
        ValueError: a label is neither in ``[0, num_classes)`` nor ``ignore_index``.

    Source: official ``mask_former_semantic_dataset_mapper.py``.
    """
    labels = torch.unique(label_map)
    labels = labels[labels != ignore_index]
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong) > 0:
        raise ValueError(
            f'label map holds {wrong.tolist()}; allowed are 0 to {num_classes - 1} and the ignore '
            f'label {ignore_index}. Check num_classes, reduce_zero_label and the files themselves.'
        )
    return MaskTarget(labels.long(), label_map[None] == labels[:, None, None])


def foreground_target(label_map: Int[Tensor, 'H W'], ignore_index: int = 255) -> MaskTarget:
    """The target of a model with a single class: label 1 is that class, label 0 is none.

    MMSegmentation's convention for one output channel: predictions are 0 and 1 as well, so the
    data set names two classes, background and foreground.

    Raises:
        ValueError: a label other than 0, 1 and ``ignore_index``.
    """
    target = label_map_target(label_map, 2, ignore_index)
    is_foreground = target.labels == 1
    return MaskTarget(target.labels[is_foreground] - 1, target.masks[is_foreground])
