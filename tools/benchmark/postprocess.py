"""What large results cost: 100 queries to 4000 x 5000 pixels, 300 instances in the losses.

    python -m tools.benchmark.postprocess --threads 2 --csv docs/benchmarks/postprocess_fp32_cpu.csv

``above_model_mib`` is the peak above the inputs and above the result that is returned; ``ours-rle``
returns instances as run lengths. ``naive`` is the official form, all masks at full size at once; it
is left out where the machine has no room for it. All are compared with it on a small image. The
losses are those of ten predictions on equal points; in ``mmdet`` they include the masks that its
head must form first, and ours keep freed memory, as their configs have it.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from pycocotools.mask import decode
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.samples import encode_rle
from tools.benchmark import harness
from tools.benchmark.train_step import equal_points

NUM_QUERIES, NUM_CLASSES, NUM_THINGS = 100, 133, 80
CONFIG = core.PostprocessConfig(object_mask_thr=0.3, overlap_thr=0.1)
SIZES = {'4000x5000': (4000, 5000), '1000x1250': (1000, 1250), '64x80': (64, 80)}
SMALL = '64x80'
RESULTS = ('semantic', 'instance', 'panoptic')
# The numbers of targets, of the image's side, and of queries: so many targets find one.
LOSSES = {
    'loss_0x1024': (0, 1024, NUM_QUERIES),
    'loss_300x1024': (300, 1024, NUM_QUERIES),
    'loss_300x1024_300-queries': (300, 1024, 300),
    'loss_30x128': (30, 128, NUM_QUERIES),
    'loss_300x128': (300, 128, NUM_QUERIES),
    'loss_130x128_130-queries': (130, 128, 130),
}
SMALL_LOSSES = ('loss_30x128', 'loss_300x128', 'loss_130x128_130-queries')
NUM_PREDICTIONS, CHANNELS = 10, 256
# Of float tensors at full size, which the naive form holds at the same time.
NAIVE_COPIES = 3
TOLERANCE = 1e-4

# What a function returns; masks may be a list of run lengths in COCO's form.
Result = Sequence[Tensor | list[dict[str, Any]]]


class Prediction(NamedTuple):
    """Class logits ``(Q, K+1)`` and mask logits at stride 4, smooth and of both signs."""

    class_logits: Tensor
    mask_logits: Tensor
    size: tuple[int, int]


def main() -> None:
    """See ``harness.main``."""
    cases = [f'{result}_{size}' for size in SIZES for result in RESULTS]
    harness.main(
        harness.Benchmark(
            'tools.benchmark.postprocess',
            [*cases, *LOSSES],
            {case: implementations(case) for case in [*cases, *LOSSES]},
            prepare,
            disagreement,
            optional=[*(f'{result}_{SMALL}' for result in RESULTS), *SMALL_LOSSES],
        )
    )


def implementations(case: str) -> list[str]:
    """Ours first, the baseline last."""
    if case in LOSSES:
        return ['ours', 'mmdet']
    return ['ours', 'ours-rle', 'naive'] if case.startswith('instance') else ['ours', 'naive']


def prepare(case: str, implementation: str) -> harness.Step:
    """One image's post-processing, or the losses of one image."""
    if case in LOSSES:
        return loss_step(implementation, draw_losses(*LOSSES[case]))
    result, size = case.split('_')
    function = FUNCTIONS[result, implementation]
    prediction = draw(SIZES[size])
    return lambda: num_bytes(function(prediction))


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Of the results on a small image; of the losses."""
    if case in LOSSES:
        return _loss_disagreement(case, names)
    result, size = case.split('_')
    prediction = draw(SIZES[SMALL])
    expected = FUNCTIONS[result, 'naive'](prediction)
    verdict: dict[str, harness.Agreement | str] = {}
    for name in names:
        found = FUNCTIONS[result, name](prediction)
        pairs = zip(decoded(found), decoded(expected), strict=True)
        difference = max(float((x.float() - y.float()).abs().max()) for x, y in pairs)
        verdict[name] = harness.Agreement(difference, TOLERANCE)
    needed = NAIVE_COPIES * NUM_QUERIES * SIZES[size][0] * SIZES[size][1] * 4
    room = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > 0.8 * room and 'naive' in verdict:
        verdict['naive'] = f'needs some {needed / 2**30:.0f} GiB of {room / 2**30:.0f}'
    return verdict


def draw(size: tuple[int, int]) -> Prediction:
    """Queries of various classes and blobs."""
    generator = torch.Generator().manual_seed(0)
    stride_4 = (size[0] // 4, size[1] // 4)
    class_logits = 3 * torch.randn(NUM_QUERIES, NUM_CLASSES + 1, generator=generator)
    coarse = 4 * torch.randn(NUM_QUERIES, 5, 6, generator=generator) - 3
    return Prediction(class_logits, core.resize_masks(coarse, stride_4), size)


def num_bytes(result: Result) -> int:
    """Of what is returned."""
    return sum(
        part.numel() * part.element_size()
        if isinstance(part, Tensor)
        else sum(len(code['counts']) for code in part)
        for part in result
    )


def decoded(result: Result) -> list[Tensor]:
    """With masks in the place of run lengths."""
    return [
        part if isinstance(part, Tensor) else torch.from_numpy(decode(part)).permute(2, 0, 1)
        for part in result
    ]


def _is_thing() -> Tensor:
    return torch.arange(NUM_CLASSES) < NUM_THINGS


def _ours(form: Callable[..., Any], prediction: Prediction, *settings: Any) -> Any:
    class_logits, mask_logits, size = prediction
    geometry = core.ImageGeometry(size, size, size)
    return form(class_logits, mask_logits, geometry, *settings)


def our_semantic(prediction: Prediction) -> list[Tensor]:
    """The label map."""
    class_logits, mask_logits, size = prediction
    return [core.semantic_labels(class_logits, mask_logits, core.ImageGeometry(size, size, size))]


def our_instance(prediction: Prediction) -> list[Tensor]:
    """Labels, scores, masks, boxes."""
    return list(_ours(core.instances, prediction, _is_thing(), CONFIG))


def our_rle(prediction: Prediction) -> Result:
    """The same with masks as run lengths."""
    return list(_ours(core.instances, prediction, _is_thing(), CONFIG, encode_rle))


def our_panoptic(prediction: Prediction) -> list[Tensor]:
    """The map of segments and their classes."""
    panoptic = _ours(core.panoptic, prediction, _is_thing(), CONFIG)
    return [panoptic.segment_map, panoptic.labels]


def naive_semantic(prediction: Prediction) -> list[Tensor]:
    """All masks at full size, then their product with the classes."""
    masks = core.resize_masks(prediction.mask_logits, prediction.size).sigmoid()
    classes = prediction.class_logits.softmax(-1)[:, :-1]
    return [torch.einsum('qc,qhw->chw', classes, masks).argmax(0)]


def naive_instance(prediction: Prediction) -> list[Tensor]:
    """Source: official ``maskformer_model.py``, ``instance_inference``; the best first."""
    logits = core.resize_masks(prediction.mask_logits, prediction.size)
    probs = prediction.class_logits.softmax(-1)[:, :-1].flatten()
    scores, pair = probs.topk(CONFIG.max_per_image)
    labels = pair % NUM_CLASSES
    kept = labels < NUM_THINGS
    labels, logits, scores = labels[kept], logits[pair[kept] // NUM_CLASSES], scores[kept]
    masks = logits > 0
    quality = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores, order = (scores * quality).sort(descending=True, stable=True)
    return [labels[order], scores, masks[order], _boxes(masks[order])]


def _boxes(masks: Tensor) -> Tensor:
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if len(rows) > 0:
            box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes


def naive_panoptic(prediction: Prediction) -> list[Tensor]:
    """Source: official ``maskformer_model.py``, ``panoptic_inference``."""
    masks = core.resize_masks(prediction.mask_logits, prediction.size).sigmoid()
    scores, labels = prediction.class_logits.softmax(-1).max(-1)
    kept = (labels < NUM_CLASSES) & (scores > CONFIG.object_mask_thr)
    masks, scores, labels = masks[kept], scores[kept], labels[kept]
    winner = (scores[:, None, None] * masks).argmax(0)
    segment_map = torch.zeros(prediction.size, dtype=torch.int32)
    stuff: dict[int, int] = {}
    segments: list[int] = []
    for query, label in enumerate(labels.tolist()):
        won, mask = winner == query, masks[query] >= 0.5
        area = int(mask.sum())
        if area == 0 or not (won & mask).any() or int(won.sum()) / area < CONFIG.overlap_thr:
            continue
        if label >= NUM_THINGS and label in stuff:
            segment_map[won & mask] = stuff[label]
            continue
        segments.append(label)
        segment_map[won & mask] = stuff[label] = len(segments)
    return [segment_map, torch.tensor(segments)]


FUNCTIONS: dict[tuple[str, str], Callable[[Prediction], Result]] = {
    ('semantic', 'ours'): our_semantic,
    ('instance', 'ours'): our_instance,
    ('instance', 'ours-rle'): our_rle,
    ('panoptic', 'ours'): our_panoptic,
    ('semantic', 'naive'): naive_semantic,
    ('instance', 'naive'): naive_instance,
    ('panoptic', 'naive'): naive_panoptic,
}


class LossProblem(NamedTuple):
    """Ten predictions of one image, leaves of the graph, and its targets."""

    class_logits: Tensor
    mask_embed: Tensor
    mask_features: Tensor
    target: core.MaskTarget


def draw_losses(num_targets: int, side: int, num_queries: int) -> LossProblem:
    """Targets are cells of a grid, each with a class of its own choice."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    # In the whole image so many rows of as many cells that there are enough of them.
    cells = max(int(num_targets**0.5 + 0.999), 1)
    position = torch.arange(side) * cells // side
    index = position[:, None] * cells + position
    masks = index == torch.arange(num_targets)[:, None, None]
    labels = torch.randint(NUM_THINGS, (num_targets,), generator=generator)
    return LossProblem(
        normal(NUM_PREDICTIONS, 1, num_queries, NUM_CLASSES + 1),
        normal(NUM_PREDICTIONS, 1, num_queries, CHANNELS),
        normal(1, CHANNELS, side // 4, side // 4),
        core.MaskTarget(labels, masks),
    )


def loss_step(implementation: str, problem: LossProblem) -> harness.Step:
    """Matching, losses and their backward pass."""
    num_queries = problem.class_logits.shape[2]
    losses = our_losses() if implementation == 'ours' else mmdet_losses(num_queries)

    def step() -> None:
        torch.stack(losses(problem)).sum().backward()

    return step


def our_losses() -> Callable[[LossProblem], list[Tensor]]:
    """From predictions to the weighted terms, prediction by prediction."""
    matcher = core.HungarianMatcher()
    # As mmdet has it: with 300 targets 100 queries find one.
    criterion = core.MaskClassificationLoss(
        core.ClassLoss(NUM_CLASSES), count_masks=core.count_matched
    )

    def losses(problem: LossProblem) -> list[Tensor]:
        predictions = [
            core.MaskPrediction(*parts)
            for parts in zip(problem.class_logits, problem.mask_embed, strict=True)
        ]
        args = (predictions, problem.mask_features, [problem.target])
        return [value for terms in criterion(*args, matcher(*args)) for value in terms]

    return losses


@functools.cache
def _mmdet_head(num_queries: int) -> Any:
    from tools.benchmark import segmentors

    spec = segmentors.SPECS['panoptic']._replace(num_queries=num_queries)
    return segmentors.build(spec, 'mmdet').panoptic_head


def mmdet_losses(num_queries: int) -> Callable[[LossProblem], list[Tensor]]:
    """The same terms of mmdet's head, in the same order."""
    from mmengine.structures import InstanceData

    head = _mmdet_head(num_queries)

    def losses(problem: LossProblem) -> list[Tensor]:
        embeds = problem.mask_embed
        masks = [torch.einsum('bqc,bchw->bqhw', e, problem.mask_features) for e in embeds]
        target = InstanceData(labels=problem.target.labels, masks=problem.target.masks.long())
        found = head.loss_by_feat(list(problem.class_logits), masks, [target], [{}])
        layers = [*(f'd{i}.' for i in range(NUM_PREDICTIONS - 1)), '']
        return [found[f'{p}loss_{n}'].squeeze() for p in layers for n in ('cls', 'mask', 'dice')]

    return losses


def _loss_disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    problem, num_queries = draw_losses(*LOSSES[case]), LOSSES[case][2]
    values = {}
    for name, losses in (('ours', our_losses()), ('mmdet', mmdet_losses(num_queries))):
        with mock.patch.object(torch, 'rand', equal_points()), torch.no_grad():
            values[name] = torch.stack(losses(problem))
    value_range = float(values['mmdet'].max() - values['mmdet'].min())
    difference = float((values['ours'] - values['mmdet']).abs().max())
    return dict.fromkeys(names, harness.Agreement(difference, TOLERANCE * value_range))


if __name__ == '__main__':
    main()
