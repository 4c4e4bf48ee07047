"""What large results cost: 100 queries to 4000 x 5000 pixels, 300 targets in the losses.

`above_model_mib` is the peak above the inputs and above the result that is returned.
`tests/core` compares the results with slow implementations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.samples import encode_rle
from tools.benchmark.cases import Case
from tools.benchmark.measure import Step

NUM_QUERIES, NUM_CLASSES, NUM_THINGS = 100, 133, 80
NUM_PREDICTIONS, CHANNELS = 10, 256
CONFIG = core.PostprocessConfig(object_mask_thr=0.3, overlap_thr=0.1)
# What a form of post-processing returns; masks may be a list of run lengths in COCO's form.
Result = Sequence[Tensor | list[dict[str, Any]]]


class Prediction(NamedTuple):
    """Class logits `(Q, K+1)` and mask logits at stride 4, smooth and of both signs."""

    class_logits: Tensor
    mask_logits: Tensor
    size: tuple[int, int]


def prepare(case: Case, _: str) -> Step:
    """Return the post-processing of one image, or the losses of one image."""
    if case.part.startswith('losses'):
        return loss_step(int(case.part.split()[2]), case.size[0])
    function, prediction = FORMS[case.part], draw(case.size)
    return lambda: num_bytes(function(prediction))


def draw(size: tuple[int, int]) -> Prediction:
    """Draw queries of various classes whose masks are blobs."""
    generator = torch.Generator().manual_seed(0)
    class_logits = 3 * torch.randn(NUM_QUERIES, NUM_CLASSES + 1, generator=generator)
    coarse = 4 * torch.randn(NUM_QUERIES, 5, 6, generator=generator) - 3
    stride_4 = (size[0] // 4, size[1] // 4)
    return Prediction(class_logits, core.resize_masks(coarse, stride_4), size)


def num_bytes(result: Result) -> int:
    """Count the bytes of what is returned."""
    return sum(
        part.nbytes if isinstance(part, Tensor) else sum(len(code['counts']) for code in part)
        for part in result
    )


def is_thing() -> Tensor:
    """Return which classes are things."""
    return torch.arange(NUM_CLASSES) < NUM_THINGS


def our_semantic(prediction: Prediction) -> Result:
    """Return the label map."""
    return [core.semantic_labels(*prediction[:2], _geometry(prediction))]


def our_instance(prediction: Prediction, *encode: Callable[..., Any]) -> Result:
    """Return labels, scores, masks (or what `encode` makes of them) and boxes."""
    return list(core.instances(*prediction[:2], _geometry(prediction), is_thing(), CONFIG, *encode))


def our_panoptic(prediction: Prediction) -> Result:
    """Return the map of segments and their classes."""
    panoptic = core.panoptic(*prediction[:2], _geometry(prediction), is_thing(), CONFIG)
    return [panoptic.segment_map, panoptic.labels]


def _geometry(prediction: Prediction) -> core.ImageGeometry:
    return core.ImageGeometry(prediction.size, prediction.size, prediction.size)


FORMS: dict[str, Callable[[Prediction], Result]] = {
    'semantic': our_semantic,
    'instance': our_instance,
    'instance-rle': lambda prediction: our_instance(prediction, encode_rle),
    'panoptic': our_panoptic,
}


def loss_step(num_targets: int, side: int) -> Step:
    """Return matching, losses and backward pass of ten predictions of one image."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    class_logits = leaf(NUM_PREDICTIONS, 1, NUM_QUERIES, NUM_CLASSES + 1)
    mask_embed = leaf(NUM_PREDICTIONS, 1, NUM_QUERIES, CHANNELS)
    features = leaf(1, CHANNELS, side // 4, side // 4)
    target = core.MaskTarget(
        torch.randint(NUM_THINGS, (num_targets,), generator=generator), grid(num_targets, side)
    )
    matcher = core.HungarianMatcher()
    # With 300 targets 100 queries find one, which is how mmdet counts them.
    criterion = core.MaskClassificationLoss(
        core.ClassLoss(NUM_CLASSES), count_masks=core.count_matched
    )

    def step() -> None:
        predictions = [
            core.MaskPrediction(*parts) for parts in zip(class_logits, mask_embed, strict=True)
        ]
        matches = matcher(predictions, features, [target])
        losses = criterion(predictions, features, [target], matches)
        torch.stack([value for terms in losses for value in terms]).sum().backward()

    return step


def grid(number: int, side: int) -> Tensor:
    """Return `number` masks `(N, side, side)`: cells of a square grid."""
    cells = max(int(number**0.5 + 0.999), 1)
    position = torch.arange(side) * cells // side
    index = position[:, None] * cells + position
    return index == torch.arange(number)[:, None, None]
