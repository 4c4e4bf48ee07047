"""Annotations to ``MaskTarget`` (spec: one boolean mask per class or segment)."""

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

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


def instance_target(
    labels: Int[Tensor, 'N'], masks: Bool[Tensor, 'N H W'] | UInt8[Tensor, 'N H W']
) -> MaskTarget:
    """Instances as they are: masks may overlap and may be empty."""
    return MaskTarget(labels.long(), masks.bool())


def segment_target(segment_map: Int[Tensor, 'H W'], labels: Int[Tensor, 'N']) -> MaskTarget:
    """The segments of a map of indices into ``labels``; -1 marks pixels of none.

    Segments without a pixel are kept, as the official panoptic mappers keep those that a crop has
    emptied; ``without_empty`` drops them.

    Raises:
        ValueError: an index that is neither -1 nor one into ``labels``.
    """
    index = torch.arange(len(labels), device=segment_map.device)
    lowest, highest = (int(value) for value in segment_map.aminmax())
    if lowest < -1 or highest >= len(labels):
        raise ValueError(
            f'segment map holds {lowest} to {highest}; allowed are the indices of its '
            f'{len(labels)} labels and -1 for pixels of no segment.'
        )
    return MaskTarget(labels.long(), segment_map[None] == index[:, None, None])


def without_empty(target: MaskTarget) -> MaskTarget:
    """Without masks that hold no pixel, as the official COCO instance mapper drops them."""
    kept = target.masks.flatten(1).any(1).nonzero()[:, 0]
    return MaskTarget(target.labels[kept], target.masks[kept])


def pad_target(target: MaskTarget, size: tuple[int, int]) -> MaskTarget:
    """Masks padded at the right and the bottom to ``size``, the network input's.

    Raises:
        ValueError: the masks are larger than that.
    """
    height, width = target.masks.shape[-2:]
    if (height, width) == size:
        return target
    if height > size[0] or width > size[1]:
        raise ValueError(
            f'masks of {height} x {width} do not fit a picture of {size[0]} x {size[1]} (height x '
            'width): the pipeline must resize and crop both alike.'
        )
    padding = (0, size[1] - width, 0, size[0] - height)
    return MaskTarget(target.labels, F.pad(target.masks, padding))


def check_labels(labels: Int[Tensor, 'N'], num_classes: int) -> None:
    """Labels are class indices.

    Raises:
        ValueError: a label outside ``[0, num_classes)``.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong) > 0:
        raise ValueError(
            f'labels hold {wrong.unique().tolist()}; allowed are 0 to {num_classes - 1}. Check '
            'num_classes and the categories of the annotation file.'
        )
