"""Convert annotations to ``MaskTarget``: one boolean mask per class or segment."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.structures import MaskTarget


class WrongLabelError(ValueError):
    """The annotations of an image, number ``image`` of those given, hold a label of no class."""

    def __init__(self, image: int, message: str) -> None:
        self.image = image
        super().__init__(message)


def label_map_targets(
    label_maps: Sequence[Int[Tensor, '_ _']], num_classes: int, ignore_index: int = 255
) -> list[MaskTarget]:
    """Make one mask per class that occurs in a map ``(H, W)``, in ascending order of the label.

    Pixels of ``ignore_index`` belong to no mask, so that they count as negative for each: the
    official rule. A map of nothing else gives a target without masks. The maps may differ in size;
    the host waits for the device once for all of them.

    Raises:
        WrongLabelError: a label is neither in ``[0, num_classes)`` nor ``ignore_index``.

    Source: official ``mask_former_semantic_dataset_mapper.py``.
    """
    present = _labels_present(label_maps, num_classes, ignore_index)
    return [
        _masks_of(label_map, labels) for label_map, labels in zip(label_maps, present, strict=True)
    ]


def foreground_targets(
    label_maps: Sequence[Int[Tensor, '_ _']], ignore_index: int = 255
) -> list[MaskTarget]:
    """Make the targets of a model with a single class: label 1 is that class, label 0 is none.

    This is MMSegmentation's convention for one output channel. The predictions are 0 and 1 as well,
    so that the data set names two classes, background and foreground.

    Raises:
        WrongLabelError: a label other than 0, 1 and ``ignore_index``.
    """
    present = _labels_present(label_maps, 2, ignore_index)
    targets = [
        _masks_of(label_map, [label for label in labels if label == 1])
        for label_map, labels in zip(label_maps, present, strict=True)
    ]
    return [MaskTarget(labels - 1, masks) for labels, masks in targets]


def _labels_present(
    label_maps: Sequence[Int[Tensor, '_ _']], num_classes: int, ignore_index: int
) -> list[list[int]]:
    """Return the classes in each map; this is the only wait for the device."""
    if not label_maps:
        return []
    found = []
    for label_map in label_maps:
        labels = label_map.flatten().long()
        # One flag per class, one for any wrong label, one for the ignore label.
        slot = torch.where((labels < 0) | (labels >= num_classes), num_classes, labels)
        slot = torch.where(labels == ignore_index, num_classes + 1, slot)
        flags = torch.zeros(num_classes + 2, dtype=torch.bool, device=label_map.device)
        found.append(flags.index_fill_(0, slot, True))
    present = torch.stack(found).tolist()
    for image, slots in enumerate(present):
        if slots[num_classes]:
            labels = label_maps[image].unique()
            wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
            raise WrongLabelError(
                image,
                f'label map holds {wrong.tolist()}; allowed are 0 to {num_classes - 1} and the '
                f'ignore label {ignore_index}. Check num_classes, reduce_zero_label and the files.',
            )
    return [[label for label in range(num_classes) if slots[label]] for slots in present]


def _masks_of(label_map: Int[Tensor, 'H W'], labels: list[int]) -> MaskTarget:
    index = torch.tensor(labels, dtype=torch.int64).to(label_map.device, non_blocking=True)
    return MaskTarget(index, label_map[None] == index.to(label_map.dtype)[:, None, None])


def instance_target(
    labels: Int[Tensor, 'N'], masks: Bool[Tensor, 'N H W'] | UInt8[Tensor, 'N H W']
) -> MaskTarget:
    """Take instances as they are: masks may overlap and may be empty."""
    return MaskTarget(labels.long(), masks.bool())


def segment_target(segment_map: Int[Tensor, 'H W'], labels: Int[Tensor, 'N']) -> MaskTarget:
    """Make a mask per segment of a map of indices into ``labels``; -1 marks pixels of none.

    Segments without a pixel are kept, as the official panoptic mappers keep those that a crop has
    emptied; ``without_empty`` drops them. ``check_segments`` says whether the indices fit.
    """
    index = torch.arange(len(labels), device=segment_map.device, dtype=segment_map.dtype)
    return MaskTarget(labels.long(), segment_map[None] == index[:, None, None])


def check_segments(
    segment_maps: Sequence[Int[Tensor, '_ _']],
    labels: Sequence[Int[Tensor, '_']],
    num_classes: int,
) -> None:
    """Check that indices and labels of all images fit; the host waits for the device once.

    Raises:
        WrongLabelError: an index that is neither -1 nor one into its image's labels, or a label
            that is no class.
    """
    if not segment_maps:
        return
    # Without segments the bounds of the labels are those of an allowed one.
    bounds = [
        torch.stack([*segment_map.aminmax(), *torch.cat([one, one.new_zeros(1)]).aminmax()])
        for segment_map, one in zip(segment_maps, labels, strict=True)
    ]
    for image, (lowest, highest, least, greatest) in enumerate(torch.stack(bounds).tolist()):
        count = len(labels[image])
        if lowest < -1 or highest >= count:
            raise WrongLabelError(
                image,
                f'segment map holds {lowest} to {highest}; allowed are the indices of its {count} '
                'labels and -1 for pixels of no segment.',
            )
        if least < 0 or greatest >= num_classes:
            check_labels(labels[image], num_classes, image)


def check_labels(labels: Int[Tensor, 'N'], num_classes: int, image: int = 0) -> None:
    """Check that labels are class indices.

    Raises:
        WrongLabelError: a label lies outside ``[0, num_classes)``; the error names ``image``.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong) > 0:
        raise WrongLabelError(
            image,
            f'labels hold {wrong.unique().tolist()}; allowed are 0 to {num_classes - 1}. Check '
            'num_classes and the categories of the annotation file.',
        )


def without_empty(target: MaskTarget) -> MaskTarget:
    """Drop masks without pixels, as the official COCO instance mapper does."""
    kept = target.masks.flatten(1).any(1).nonzero()[:, 0]
    return MaskTarget(target.labels[kept], target.masks[kept])


def pad_target(target: MaskTarget, size: tuple[int, int]) -> MaskTarget:
    """Pad the masks at the right and the bottom to ``size``, that of the network's input.

    Raises:
        ValueError: the masks are larger.
    """
    height, width = target.masks.shape[-2:]
    if (height, width) == size:
        return target
    if height > size[0] or width > size[1]:
        raise ValueError(
            f'masks of {height} x {width} do not fit an image of {size[0]} x {size[1]} (height x '
            'width): the pipeline must resize and crop both alike.'
        )
    padding = (0, size[1] - width, 0, size[0] - height)
    return MaskTarget(target.labels, F.pad(target.masks, padding))
