"""A full training step on the CPU, our head beside mmseg's, mmdet's and Hugging Face's.

    python -m tools.benchmark.train_step --threads 2 --csv docs/benchmarks/train-step_fp32_cpu.csv

Two real images with their annotation, the same random weights: forward, losses, backward,
gradients clipped to 0.01, a step of AdamW. Ours fuse AdamW, as their configs have
it. ``-tuned`` is that, channels last and the best number of threads; ``-bf16`` is that under
autocast, ours with ``mixed_precision`` of the pixel decoder; ``-checkpointed`` computes activations
again in the backward pass, in the backbone and, of ours, in both decoders. ``-accelerated`` is the
stock peer after ``mmseg_m2f.accelerate`` and nothing else, ``ours-plain`` does not fuse
AdamW, a peer's ``-kept`` does as ours do; these run where they are named. Our matcher
draws its points once per image (its default, also where it accelerates), the others for every
prediction. Before any timing all losses and the norm of the gradient are compared, on equal points.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import mmseg_m2f
from tools.benchmark import harness, segmentors
from tools.benchmark.cases import CASES
from tools.benchmark.images import class_masks
from tools.benchmark.inference import (
    ACCELERATED,
    KEPT,
    PLAIN,
    is_hugging_face,
    named,
    normalised,
)
from tools.benchmark.tuning import in_bfloat16, with_best_threads

SMALL = ('r50_256', 'r18_64', 'panoptic_64')
NAMES = ('r50_512', 'panoptic_512', *SMALL)
VARIANTS = ('-bf16', '-checkpointed', '-tuned', '')

# Share of the losses' range, and of the gradient's norm, that float32 may differ by; in bfloat16
# some queries find another target.
TOLERANCE, ROUGH = 1e-4, 0.2


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.train_step',
            NAMES,
            {case: implementations(case) for case in NAMES},
            prepare,
            disagreement,
            optional=[
                *SMALL,
                f'ours-{PLAIN}',
                *(f'{name}-{kind}' for name in ('hf', 'mmseg', 'mmdet') for kind in named(name)),
            ],
        )
    )


def implementations(case: str) -> list[str]:
    """Ours first, the stock peer last: the baseline."""
    names = [f'ours-{PLAIN}', *(f'ours{variant}' for variant in VARIANTS)]
    for peer in CASES[case].peers:
        names += [f'{peer}-{kind}' for kind in named(peer)]
        names += [f'{peer}{kind}' for kind in VARIANTS]
    return names


def prepare(case: str, implementation: str) -> harness.Step:
    """One step of one model on one batch."""
    model = load_model(case, implementation)
    step = full_step(model, CASES[case].train(), implementation)
    if implementation.endswith(('-tuned', '-bf16')):
        return with_best_threads(step, f'{case}-{implementation}')
    return step


def load_model(case: str, implementation: str) -> Any:
    """In training mode, with the weights that all share."""
    layout, _, variant = implementation.partition('-')
    switches = {'checkpointing': variant == 'checkpointed', 'mixed_precision': variant == 'bf16'}
    model = CASES[case].build(layout, **switches)
    model.train()
    if layout == 'hf':
        segmentors.freeze_batch_norms(model)
    if variant in ('tuned', 'bf16'):
        model = model.to(memory_format=torch.channels_last)
    if variant == 'bf16':
        model.forward = in_bfloat16(model.forward)
    return mmseg_m2f.accelerate(model) if variant == ACCELERATED else model


def full_step(model: Any, batch: dict[str, Any], implementation: str) -> harness.Step:
    """With the optimiser that the implementation's name stands for."""
    layout, _, variant = implementation.partition('-')
    like_ours = variant == KEPT or (layout == 'ours' and variant != PLAIN)
    as_our_configs = like_ours or variant in ('tuned', 'bf16')
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=as_our_configs)
    return functools.partial(train_step, model, batch, optimiser)


def train_step(model: Any, batch: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
    """Forward, losses, backward, clip, step."""
    optimiser.zero_grad()
    gradients(model, batch)
    optimiser.step()


def gradients(model: Any, batch: dict[str, Any]) -> None:
    """Forward, losses, backward, clip."""
    torch.stack(list(losses(model, batch).values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def losses(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The weighted losses of all predictions, by the names mmseg gives them."""
    if is_hugging_face(model):
        return _hf_losses(model, batch)
    found = model(**model.data_preprocessor(batch, training=True), mode='loss')
    # mmdet keeps an axis of length 1 on the mask losses.
    return {name: value.squeeze() for name, value in found.items()}


def _hf_losses(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Hugging Face gives the sum alone; the terms are noted on the way."""
    noted: dict[str, Tensor] = {}
    original = model.get_loss_dict

    def get_loss_dict(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        noted.update(original(*args, **kwargs))
        return noted

    with mock.patch.object(model, 'get_loss_dict', get_loss_dict):
        _run_hf(model, batch)
    return {_mmseg_name(name): value for name, value in noted.items()}


def _run_hf(model: Any, batch: dict[str, Any]) -> None:
    targets = [class_masks(sample.gt_sem_seg.data[0]) for sample in batch['data_samples']]
    labels, masks = (list(part) for part in zip(*targets, strict=True))
    model(normalised(batch), mask_labels=masks, class_labels=labels)


def _mmseg_name(name: str) -> str:
    """``loss_mask_3`` to ``decode.d3.loss_mask``."""
    for theirs, ours in (('cross_entropy', 'cls'), ('mask', 'mask'), ('dice', 'dice')):
        if name.startswith(f'loss_{theirs}'):
            layer = name.removeprefix(f'loss_{theirs}').removeprefix('_')
            return f'decode.d{layer}.loss_{ours}' if layer else f'decode.loss_{ours}'
    raise ValueError(f'not a loss of Hugging Face: {name}')


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Largest difference of losses, and of the gradients' norm where its share is worse."""
    CASES[case].share_weights(CASES[case].train())
    expected, expected_norm = _losses_and_norm(case, CASES[case].peers[-1])
    value_range = float(expected.max() - expected.min())
    verdict: dict[str, harness.Agreement | str] = {}
    for implementation in names:
        objection = why_not(implementation)
        if objection is not None:
            verdict[implementation] = objection
            continue
        found, norm = _losses_and_norm(case, implementation)
        difference = float((found - expected).abs().max())
        by_norm = abs(norm - expected_norm) / expected_norm * value_range
        verdict[implementation] = harness.Agreement(
            max(difference, by_norm) if math.isfinite(norm) else norm,
            (ROUGH if implementation.endswith('-bf16') else TOLERANCE) * value_range,
        )
    return verdict


def why_not(implementation: str) -> str | None:
    """Why an implementation has no such variant, if so."""
    if implementation == 'hf-checkpointed':
        return 'Hugging Face has no checkpointing for this model'
    return None


def _losses_and_norm(case: str, implementation: str) -> tuple[Tensor, float]:
    """All losses, by name, and the norm of the gradient of their sum, on fixed points."""
    model = load_model(case, implementation)
    with mock.patch.object(torch, 'rand', equal_points()):
        found = losses(model, CASES[case].train())
    total = torch.stack([found[key] for key in sorted(found)])
    total.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return total.detach(), float(torch.nn.utils.get_total_norm(gradients))


def equal_points() -> Any:
    """A ``torch.rand`` with the same points in every row: the heads draw in different orders."""
    original = torch.rand

    def rand(*shape: Any, **_: Any) -> Tensor:
        size = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        if len(size) < 2:
            return original(*shape)
        generator = torch.Generator().manual_seed(size[-2])
        return original(1, *size[-2:], generator=generator).repeat(size[0], 1, 1)

    return rand


if __name__ == '__main__':
    main()
