"""Loss step and test of a semantic model on the CPU, our head against mmseg's own.

    python -m tools.benchmark.semantic --csv docs/benchmarks/semantic_fp32_cpu.csv

Real pictures (two crops of ``data/tiny/coco``, 133 classes), the same R50, random weights,
everything else by default. A loss step is forward, losses and backward; a test goes from pictures
to the label map. Before any timing the outputs on equal weights are compared: all losses under
equal points, and the score maps. Our matcher draws its points once per picture (its default),
mmseg's for every prediction.
"""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmseg.registry import TRANSFORMS
from torch import Tensor

from tools.benchmark import harness
from tools.benchmark.segmentors import build_mmseg, build_ours, copy_weights

DATA = harness.ROOT / 'data/tiny/coco'
PICTURES = ('000000000030', '000000000436')
NUM_CLASSES = 133
DEPTH = 50

# Share of the outputs' range that float32 may differ by.
TOLERANCE = 1e-4


def main() -> None:
    """See ``harness.main``."""
    cases = [f'{kind}_{size}' for kind in ('loss', 'test') for size in (512, 256)]
    harness.main(
        harness.Benchmark(
            'tools.benchmark.semantic', cases, ('ours', 'mmseg'), prepare, disagreement
        )
    )


def prepare(case: str, implementation: str) -> harness.Step:
    """One loss step or test of one model on one batch."""
    torch.manual_seed(0)
    # Only the gate needs equal weights; a second model here would count as memory of the first.
    build = {'ours': build_ours, 'mmseg': build_mmseg}[implementation]
    model = build(DEPTH, NUM_CLASSES)
    kind, size = case.split('_')
    step = {'loss': _loss_step, 'test': _test}[kind]
    return functools.partial(step, model.train(kind == 'loss'), load_batch(int(size)))


def disagreement(case: str) -> tuple[float, float]:
    """Largest difference of the losses or of the scores, and its limit."""
    torch.manual_seed(0)
    ours, theirs = build_ours(DEPTH, NUM_CLASSES), build_mmseg(DEPTH, NUM_CLASSES)
    copy_weights(ours, theirs)
    kind, size = case.split('_')
    outputs = _losses if kind == 'loss' else _scores
    found, expected = (outputs(model.eval(), load_batch(int(size))) for model in (ours, theirs))
    value_range = float(expected.max() - expected.min())
    return float((found - expected).abs().max()), TOLERANCE * value_range


def load_batch(size: int) -> dict[str, Any]:
    """Two crops through mmseg's own transforms, not yet normalised."""
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations'},
        {'type': 'Resize', 'scale': (4 * size, size), 'keep_ratio': True},
        {'type': 'RandomCrop', 'crop_size': (size, size)},
        {'type': 'PackSegInputs'},
    ]
    transforms = [TRANSFORMS.build(step) for step in pipeline]
    np.random.seed(0)
    packed = [_load(name, transforms) for name in PICTURES]
    return {key: [sample[key] for sample in packed] for key in ('inputs', 'data_samples')}


def _load(name: str, transforms: list[Callable[[dict], dict]]) -> dict[str, Any]:
    data: dict[str, Any] = {
        'img_path': str(DATA / f'img/train/{name}.jpg'),
        'seg_map_path': str(DATA / f'labelmap/train/{name}.png'),
        'seg_fields': [],
        'reduce_zero_label': False,
    }
    for transform in transforms:
        data = transform(data)
    # The crop is the picture: nothing is left to scale back to.
    data['data_samples'].set_metainfo({'ori_shape': data['data_samples'].img_shape})
    return data


def _loss_step(model: Any, batch: dict[str, Any]) -> None:
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    model.zero_grad()


@torch.no_grad()
def _test(model: Any, batch: dict[str, Any]) -> None:
    model(**model.data_preprocessor(batch, training=False), mode='predict')


@torch.no_grad()
def _losses(model: Any, batch: dict[str, Any]) -> Tensor:
    """All losses, by name, on fixed points."""
    original = torch.rand

    def rand(*shape: Any, **_: Any) -> Tensor:
        """The same points for every row: the two heads draw in different orders."""
        size = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        generator = torch.Generator().manual_seed(size[-2])
        return original(1, *size[-2:], generator=generator).repeat(size[0], 1, 1)

    with mock.patch.object(torch, 'rand', rand):
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    # mmdet keeps an axis of length 1 on the mask losses.
    return torch.stack([losses[key].squeeze() for key in sorted(losses)])


@torch.no_grad()
def _scores(model: Any, batch: dict[str, Any]) -> Tensor:
    samples = model(**model.data_preprocessor(batch, training=False), mode='predict')
    return torch.stack([sample.seg_logits.data for sample in samples])


if __name__ == '__main__':
    main()
