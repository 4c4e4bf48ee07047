"""Inference and training steps on a GPU, our head beside mmseg's and mmdet's.

    python -m tools.benchmark.gpu_models OUT [--dry-run]

R50 with the same random weights and the same real images: 512 x 512 for mmseg (inference of one
image, training of two), 800 x 1333 (inference) and 1024 x 1024 (training of two) for mmdet's
panoptic model; with automatic mixed precision in float16, inference also in torch's float32.
Inference includes post-processing, a training step forward, losses, backward, the scaler's work,
clipping and AdamW, fused for ours as our configs have it; images and annotations are on the GPU
already. ``ours`` is as it comes, ``ours-triton`` with the Triton kernel, ``ours-triton-mixed`` with
the pixel decoder in float16, too, where the autocast has the peers'. The difference beside the time
is of the scores or logits (inference), or of the losses on equal points (training), to the peer's
in the same type.
"""

import contextlib
import functools
import gc
import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from mmseg_m2f.core.deform_attn import MSDeformAttn
from tools.benchmark import gpu_timing, harness, segmentors
from tools.benchmark.gpu_images import panoptic_training_batch
from tools.benchmark.images import panoptic_batch, semantic_batch
from tools.benchmark.train_step import equal_points

WARM_UP, ROUNDS, BUDGET = 3, 3, 1.0


class Case(NamedTuple):
    """A peer's model at one size.

    ``size`` is the side of a square, or for mmdet's inference the scale of its test image.
    """

    model: str
    kind: str
    size: float
    precisions: tuple[str, ...] = ('amp',)

    @property
    def peer(self) -> str:
        """The package that the model is compared with."""
        return segmentors.SPECS[self.model].package

    @property
    def batch(self) -> dict[str, Any]:
        """The real images, on the CPU."""
        if self.model == 'panoptic':
            if self.kind == 'inference':
                return panoptic_batch(self.size)
            return panoptic_training_batch(int(self.size), 2)
        return semantic_batch(int(self.size), 1 if self.kind == 'inference' else 2)


BOTH = ('amp', 'fp32')
CASES = {
    'panoptic-1024-batch2_training': Case('panoptic', 'training', 1024),
    'semantic-512-batch2_training': Case('r50', 'training', 512),
    'panoptic-800x1333_inference': Case('panoptic', 'inference', 1.0, BOTH),
    'semantic-512_inference': Case('r50', 'inference', 512, BOTH),
}
DRY_CASES = {
    'semantic-64_inference': Case('r18', 'inference', 64),
    'semantic-64-batch2_training': Case('r18', 'training', 64),
    'panoptic-64-batch2_training': Case('panoptic', 'training', 64),
}


class Subject(NamedTuple):
    """A model at work, the GPU's memory that it holds, and its outputs in float32."""

    step: harness.Step
    holds: int
    values: Tensor


def main() -> None:
    """Time every case in its precisions."""
    options = gpu_timing.parse(__doc__)
    table = gpu_timing.Table('gpu-models', options)
    cases = DRY_CASES if options.dry_run else CASES
    drawn: set[str] = set()
    with _shared_folder():
        for name, case in cases.items():
            if case.model not in drawn:
                spec = segmentors.SPECS[case.model]
                segmentors.share_weights(spec, case.model, [spec.package], case.batch)
                drawn.add(case.model)
            for precision in case.precisions:
                compare(table, options.device, f'{name}_{precision}', case)
    table.finish()


@contextlib.contextmanager
def _shared_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as path:
        os.environ[harness.FOLDER] = path
        yield


def compare(table: gpu_timing.Table, device: torch.device, name: str, case: Case) -> None:
    """Check one case's implementations against each other, then time them by turns."""
    subjects: dict[str, Subject] = {}
    amp = name.endswith('amp')
    for implementation in (*_ours(device, amp=amp), case.peer):
        work = functools.partial(prepare, case, implementation, device, amp=amp)
        is_ours = implementation != case.peer
        found = gpu_timing.attempt(table, name, implementation, work, ours=is_ours)
        if found is not None:
            subjects[implementation] = found
        _collect(device)
    timing = functools.partial(measure, subjects, case.peer, device)
    figures = gpu_timing.attempt(table, name, 'timing', timing, ours=True) or {}
    table.add(name, figures, figures.get(case.peer))
    subjects.clear()
    _collect(device)


def _ours(device: torch.device, *, amp: bool) -> list[str]:
    kernel = 'ours' if device.type == 'cpu' else 'ours-triton'
    return list(dict.fromkeys(['ours', kernel, *([f'{kernel}-mixed'] if amp else [])]))


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


def prepare(case: Case, implementation: str, device: torch.device, *, amp: bool) -> Subject:
    """Build a model, note its outputs and warm it up."""
    before = _allocated(device)
    layout, *variant = implementation.split('-')
    spec, mixed = segmentors.SPECS[case.model], 'mixed' in variant
    model = segmentors.build_shared(spec, case.model, layout, mixed_precision=mixed).to(device)
    if 'triton' in variant:
        use_backend(model, 'triton')
    if case.kind == 'inference':
        step, values = inference(model.eval(), case.batch, device, amp=amp)
    else:
        fused = layout == 'ours'
        step, values = training(model.train(), case.batch, device, amp=amp, fused=fused)
    for _ in range(WARM_UP if device.type == 'cuda' else 1):
        step()
    gpu_timing.synchronise(device)
    return Subject(step, _allocated(device) - before, values.cpu())


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == 'cuda' else 0


def use_backend(model: nn.Module, name: str) -> None:
    """Have all deformable attention of ours done by the back end named."""
    modules = [module for module in model.modules() if isinstance(module, MSDeformAttn)]
    if not modules:
        raise ValueError(f'{type(model).__name__} has no deformable attention of ours')
    for module in modules:
        module.backend = name


def autocast(device: torch.device, *, amp: bool) -> torch.autocast:
    """float16 on a GPU; bfloat16 on a CPU, which has no float16."""
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp)


def inference(
    model: Any, batch: dict[str, Any], device: torch.device, *, amp: bool
) -> tuple[harness.Step, Tensor]:
    """A step from images on the GPU to results, and the scores or logits."""
    data = model.data_preprocessor(batch, training=False)

    def step() -> Any:
        with torch.inference_mode(), autocast(device, amp=amp):
            return model(**data, mode='predict')

    if hasattr(model, 'decode_head'):
        return step, _scores(model, step)
    return step, _panoptic_logits(model, step)


def _scores(model: Any, step: harness.Step) -> Tensor:
    """Of ours only for this, as what is timed gives label maps alone."""
    test_cfg = model.test_cfg
    if hasattr(model, 'keep_score_maps'):
        model.keep_score_maps()
    [sample] = step()
    model.test_cfg = test_cfg
    scores = sample.seg_logits.data.float()
    del sample.seg_logits  # the sample is that of all steps
    return scores


def _panoptic_logits(model: Any, step: harness.Step) -> Tensor:
    noted: list[Any] = []
    hook = model.panoptic_head.register_forward_hook(lambda _, __, output: noted.append(output))
    step()
    hook.remove()
    # mmdet's head gives the logits of all predictions, ours those of the last.
    last = [part[-1] if isinstance(part, list) else part for part in noted[0]]
    return torch.cat([part.flatten().float() for part in last])


def training(
    model: Any, batch: dict[str, Any], device: torch.device, *, amp: bool, fused: bool
) -> tuple[harness.Step, Tensor]:
    """A full step, and the losses on equal points before the first."""
    data = model.data_preprocessor(batch, training=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=fused)
    scaler = torch.amp.GradScaler(device.type, enabled=amp and device.type == 'cuda')

    def losses() -> Tensor:
        with autocast(device, amp=amp):
            found = model(**data, mode='loss')
            # mmdet keeps an axis of length 1 on the mask losses.
            return torch.stack([found[key].float().squeeze() for key in sorted(found)])

    def step() -> None:
        optimiser.zero_grad()
        scaler.scale(losses().sum()).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(parameters, 0.01)
        scaler.step(optimiser)
        scaler.update()

    with mock.patch.object(torch, 'rand', _points_on(device)), torch.no_grad():
        return step, losses()


def _points_on(device: torch.device) -> Any:
    """``torch.rand`` with the same points in every row, drawn on the CPU."""
    draw = equal_points()

    def rand(*shape: Any, **_: Any) -> Tensor:
        return draw(*shape).to(device)

    return rand


def measure(
    subjects: dict[str, Subject], peer: str, device: torch.device
) -> dict[str, gpu_timing.Figures]:
    """Figures of those that run."""
    steps = {name: subject.step for name, subject in subjects.items()}
    seconds = gpu_timing.timed_by_turns(steps, device, rounds=ROUNDS, budget=BUDGET)
    figures = {}
    for name, subject in subjects.items():
        others = _allocated(device) - subject.holds
        figures[name] = gpu_timing.Figures(
            seconds[name],
            gpu_timing.peak_mib(subject.step, device, others),
            difference(subjects, name, peer),
            gpu_timing.count_synchronisations(subject.step, device),
        )
    return figures


def difference(subjects: dict[str, Subject], name: str, peer: str) -> float:
    """The largest between outputs of an implementation and of the peer, if that runs."""
    if peer not in subjects:
        return math.nan
    return float((subjects[name].values - subjects[peer].values).abs().max())


if __name__ == '__main__':
    main()
