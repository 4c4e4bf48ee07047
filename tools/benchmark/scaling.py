"""A training step against the number of targets, the image's side and the number of queries.

    python -m tools.benchmark.scaling --threads 2 --csv docs/benchmarks/scaling_fp32_cpu.csv

One real image, R18 so that the head counts, our head beside mmseg's and Hugging Face's; ours keep
freed memory and fuse AdamW, as their configs have it. Targets are cells of a grid, each a class of
its own: real images do not have 300. One thing is changed at a time from 30 targets, 256 pixels
and 100 queries; targets with 300 queries, so that each finds one. Before any timing the losses are
compared, on equal points.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from tools.benchmark import harness, segmentors
from tools.benchmark.images import semantic_batch
from tools.benchmark.train_step import equal_points, full_step, losses

IMPLEMENTATIONS = ('ours', 'hf', 'mmseg')
# One of 301 labels means ignore.
NUM_CLASSES, IGNORE = 301, 255
# Share of the losses' range. Random queries are alike: of hundreds of targets a few may change
# theirs for less than a rounding error, with another class loss (with 100 targets one of 30 terms
# by 1.03 %, the same whether ours runs on its fast paths or plain).
TOLERANCE = 2e-2


class Size(NamedTuple):
    """What a case changes."""

    targets: int = 30
    side: int = 256
    queries: int = 100


CASES = {
    **{
        f'targets_{number}': Size(targets=number, queries=300)
        for number in (1, 10, 30, 100, 200, 300)
    },
    **{f'side_{side}': Size(side=side) for side in (256, 384, 512, 768, 1024)},
    **{f'queries_{number}': Size(queries=number) for number in (50, 100, 200, 300)},
    'small_64': Size(targets=3, side=64, queries=50),
}


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.scaling',
            list(CASES),
            IMPLEMENTATIONS,
            prepare,
            disagreement,
            optional=['small_64'],
        )
    )


def prepare(case: str, implementation: str) -> harness.Step:
    """A full step of one model."""
    return full_step(load_model(case, implementation), load_batch(case), implementation)


def load_model(case: str, implementation: str) -> Any:
    """In training mode."""
    spec = spec_of(case)
    model = segmentors.build_shared(spec, f'r18-{spec.num_queries}', implementation).train()
    if implementation == 'hf':
        segmentors.freeze_batch_norms(model)
    return model


def spec_of(case: str) -> segmentors.Spec:
    """Only the queries change the model."""
    queries = CASES[case].queries
    return segmentors.Spec('mmseg', segmentors.MMSEG_R50, NUM_CLASSES, 18, queries)


def load_batch(case: str) -> dict[str, Any]:
    """The image, with a grid of labels in the place of its own."""
    size = CASES[case]
    batch = semantic_batch(size.side, 1)
    [sample] = batch['data_samples']
    sample.gt_sem_seg.data = grid(size.targets, size.side)[None]
    return batch


def grid(number: int, side: int) -> Tensor:
    """Rows of cells, ``number`` in all; what is left over is ignored."""
    cells = max(int(number**0.5 + 0.999), 1)
    position = torch.arange(side) * cells // side
    labels = position[:, None] * cells + position
    shifted = labels + (labels >= IGNORE)
    return shifted.masked_fill(labels >= number, IGNORE)


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Largest difference of the losses."""
    spec = spec_of(case)
    peers = IMPLEMENTATIONS[1:]
    segmentors.share_weights(spec, f'r18-{spec.num_queries}', peers, load_batch(case))
    expected = _losses(case, peers[-1])
    limit = TOLERANCE * float(expected.max() - expected.min())
    return {
        name: harness.Agreement(float((_losses(case, name) - expected).abs().max()), limit)
        for name in names
    }


@torch.no_grad()
def _losses(case: str, implementation: str) -> Tensor:
    model = load_model(case, implementation)
    with mock.patch.object(torch, 'rand', equal_points()):
        found = losses(model, load_batch(case))
    return torch.stack([found[key] for key in sorted(found)])


if __name__ == '__main__':
    main()
