"""Turn mmdet's data samples into targets of the core, and results of the core into mmdet's."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.arrays import columnwise
from mmseg_m2f.evaluation.panoptic_map import INSTANCE_OFFSET
from mmseg_m2f.evaluation.rle import Rle, encode_masks


def targets_of(
    samples: Sequence[Any], is_thing: Tensor, size: tuple[int, int]
) -> list[core.MaskTarget]:
    """Return the segments or instances of each ``DetDataSample``, one target per image.

    Two layouts are read. Ours: ``gt_panoptic_seg.segment_idx (1, H, W)`` holds the index of a
    segment in ``gt_segments.labels``, or -1. mmdet's own: ``gt_instances`` with masks of any kind,
    and for panoptic models ``gt_sem_seg``, of which the stuff classes are used.

    Args:
        samples: one per image.
        is_thing: ``(K,)`` bool.
        size: height and width of the network's input. Masks are padded to it with False.
    """
    ours = [sample for sample in samples if _has_segment_map(sample)]
    maps = [_segment_map(sample) for sample in ours]
    try:
        core.check_segments(maps, [sample.gt_segments.labels for sample in ours], len(is_thing))
    except core.WrongLabelError as error:
        raise ValueError(f'{_source(ours[error.image])}: {error}') from None
    targets = []
    for sample in samples:
        try:
            targets.append(_target_of(sample, is_thing, size))
        except ValueError as error:
            raise ValueError(f'{_source(sample)}: {error}') from None
    return targets


def _has_segment_map(sample: Any) -> bool:
    return 'segment_idx' in sample.get('gt_panoptic_seg', ())


def _segment_map(sample: Any) -> Tensor:
    return sample.gt_panoptic_seg.segment_idx.squeeze(0)


def _target_of(sample: Any, is_thing: Tensor, size: tuple[int, int]) -> core.MaskTarget:
    if _has_segment_map(sample):
        target = core.segment_target(_segment_map(sample), sample.gt_segments.labels)
        return core.pad_target(target, size)
    things = _instances(sample)
    core.check_labels(things.labels, len(is_thing))
    things = core.pad_target(things, size)
    if 'gt_sem_seg' not in sample:
        return things
    ignore_index = sample.gt_sem_seg.get('ignore_index', 255)
    label_map = sample.gt_sem_seg.sem_seg.squeeze(0).int()
    [segments] = core.label_map_targets([label_map], len(is_thing), ignore_index)
    segments = core.pad_target(segments, size)
    is_stuff = ~is_thing[segments.labels]
    return core.MaskTarget(
        torch.cat([things.labels, segments.labels[is_stuff]]),
        torch.cat([things.masks, segments.masks[is_stuff]]),
    )


def _instances(sample: Any) -> core.MaskTarget:
    instances = sample.get('gt_instances', ())
    if 'masks' not in instances or 'labels' not in instances:
        raise ValueError(
            'the sample has neither gt_instances with labels and masks nor '
            "gt_panoptic_seg.segment_idx. Put dict(type='LoadAnnotations', with_mask=True) or our "
            'LoadSegments into the pipeline, before the packing.'
        )
    labels, masks = instances.labels, instances.masks
    if not isinstance(masks, Tensor):
        # BitmapMasks or PolygonMasks.
        masks = masks.to_tensor(torch.bool, labels.device)
    return core.instance_target(labels, masks.to(labels.device, torch.bool))


def _source(sample: Any) -> str:
    metainfo = sample.metainfo
    return metainfo.get('seg_map_path') or metainfo.get('img_path') or 'an unnamed image'


def geometry_of(sample: Any, padded: tuple[int, int]) -> core.ImageGeometry:
    """Return the sizes of the network's input (``padded``), of the image in it, and of the file."""
    missing = sorted({'img_shape', 'ori_shape'} - set(sample.metainfo))
    if missing:
        raise ValueError(
            f'{_source(sample)}: the metainfo of the sample lacks {missing}. Add them to meta_keys '
            'of the packing transform.'
        )
    # mmdet's shapes may end in the number of channels.
    height, width, *_ = map(int, sample.img_shape)
    file_height, file_width, *_ = map(int, sample.ori_shape)
    return core.ImageGeometry(padded, (height, width), (file_height, file_width))


def encode_rle(masks: Tensor) -> list[Rle]:
    """Encode ``masks (N, H, W)`` bool as COCO's compressed run lengths, which fit into JSON."""
    return encode_masks(columnwise(masks))


def encode_panoptic(panoptic: core.Panoptic, num_classes: int) -> PixelData:
    """Return ``sem_seg (1, H, W)`` int32 in mmdet's encoding.

    A pixel of the k-th thing of the image (k = 1, 2, ...) holds class + 1000 k, a stuff pixel its
    class, and a void pixel ``num_classes``.
    """
    is_thing = panoptic.is_thing.int()
    ids = panoptic.labels.int() + INSTANCE_OFFSET * is_thing.cumsum(0, dtype=torch.int32) * is_thing
    table = torch.cat([ids.new_tensor([num_classes]), ids])
    return PixelData(sem_seg=table[panoptic.segment_map.long()][None])
