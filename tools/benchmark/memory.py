"""The memory of large results: 100 queries to 4000 x 5000 pixels, 300 targets in the losses.

`above_model_mib` is the peak above the inputs and above the result that is returned.
`tests/core` compares the results with slow implementations.
"""

from collections.abc import Sequence
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
    prediction = draw(case.size)
    return lambda: num_bytes(post_process(case.part, prediction))


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


def post_process(part: str, prediction: Prediction) -> Result:
    """Return the tensors of a label map, of a panoptic map, or of instances and their boxes."""
    class_logits, mask_logits, size = prediction
    inputs = (class_logits, mask_logits, core.ImageGeometry(size, size, size))
    is_thing = torch.arange(NUM_CLASSES) < NUM_THINGS
    if part == 'semantic':
        return [core.semantic_labels(*inputs)]
    if part == 'panoptic':
        panoptic = core.panoptic(*inputs, is_thing, CONFIG)
        return [panoptic.segment_map, panoptic.labels]
    encode = [encode_rle] if part == 'instance-rle' else []
    return list(core.instances(*inputs, is_thing, CONFIG, *encode))


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
