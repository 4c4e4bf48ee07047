"""Counts of a training step up to the optimiser and of a test, ours beside the peers'.

    python -m tools.benchmark.counters --csv docs/benchmarks/counters.csv

FLOPs (matrix products, attention, convolutions; the arithmetic of deformable attention is not among
them), calls of ATen's operators, bytes kept for backward beside the parameters, and
synchronisations: operators and copies that would wait for a GPU. The optimiser is the same for all,
and on a CPU asks for numbers that it keeps there on a GPU, too. And the bits of attention masks
that fall to the other side than in float64 with the official order of operations, by type, as the
weights are and with logits of the size they have after training. ``panoptic`` is beside mmdet: a
test at 800 x 1333, a training step at 512 x 512; in ``panoptic_128`` a quarter of these sides.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.benchmark import harness, inference, segmentors, train_step
from tools.benchmark.cases import CASES
from tools.benchmark.counting import Counts, count, noting_embeddings, sign_flips

NAMES = ('r50_512', 'r18_128', 'panoptic', 'panoptic_128')
IMPLEMENTATIONS = ('ours', 'hf', 'mmseg', 'mmdet')
TYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Row(NamedTuple):
    """One number."""

    case: str
    impl: str
    counter: str
    value: int
    torch: str
    commit: str


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print; with ``--csv`` write the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--cases', nargs='+', choices=NAMES, default=['r50_512', 'panoptic'])
    parser.add_argument(
        '--implementations', nargs='+', choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS)
    )
    parser.add_argument('--csv', type=Path)
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[harness.FOLDER] = folder
        for case in args.cases:
            rows += list(_rows(case, args.implementations))
    if args.csv:
        harness.write_csv(args.csv, rows)


def _rows(case: str, implementations: Sequence[str]) -> Iterator[Row]:
    CASES[case].share_weights(CASES[case].test())
    for name in [name for name in implementations if name in ('ours', *CASES[case].peers)]:
        found = {**counts(case, name), **(flips(case) if name == 'ours' else {})}
        for counter, value in found.items():
            print(f'{case} {name} {counter}: {value:,}', flush=True)
            yield Row(case, name, counter, value, torch.__version__, harness.commit())


def counts(case: str, implementation: str) -> dict[str, int]:
    """Of a training step with two images up to the optimiser, and of a test with one."""
    model = CASES[case].build(implementation)
    tested = functools.partial(inference.run, model.eval(), CASES[case].test())
    # What is made once and kept is no part of a step.
    tested()
    trainable = [p for p in model.parameters() if p.requires_grad]
    # The counter of FLOPs looks for a graph of whatever asks for a gradient.
    model.requires_grad_(False)
    found = _named('test', count(tested))
    for parameter in trainable:
        parameter.requires_grad_()
    model.train()
    if implementation == 'hf':
        segmentors.freeze_batch_norms(model)
    trained = functools.partial(train_step.gradients, model, CASES[case].train())
    return {**found, **_named('train', count(trained, model.parameters()))}


def _named(prefix: str, counted: Counts) -> dict[str, int]:
    return {f'{prefix}_{name}': value for name, value in counted._asdict().items()}


def flips(case: str) -> dict[str, int]:
    """Attention bits of our test, and those that flip."""
    model: Any = CASES[case].build('ours').eval()
    head = model.panoptic_head if CASES[case].is_panoptic else model.decode_head
    with noting_embeddings(head) as noted:
        inference.run(model, CASES[case].test())
    found: dict[str, int] = {}
    for kind, dtype in TYPES.items():
        for suffix, trained in (('', False), ('_trained', True)):
            flipped = sign_flips(noted, dtype, trained=trained)
            found[f'flips_{kind}{suffix}_ours'] = flipped.ours
            found[f'flips_{kind}{suffix}_official'] = flipped.official
            found['attention_bits'] = flipped.bits
    return found


if __name__ == '__main__':
    main()
