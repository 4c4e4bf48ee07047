"""Check and time the CUDA paths on one GPU; `gpu.sh` runs this.

    python -m tools.benchmark.gpu {ops,models,waterfall} OUT [--dry-run]

Each section writes `OUT/gpu-<section>.csv`. A dry run does the same at tiny sizes on the CPU, where
the clock is the host's and what only a GPU can tell stays empty. No GPU has run this yet.

ops: deformable attention in three types, ours beside mmcv's operator, after a comparison with
float64. The time is the GPU's alone, with a cold cache.
models: inference and training of ours beside mmseg's and mmdet's, in float32 and with AMP.
waterfall: inference with Swin-L at 640 x 640, from the stock model to ours, one change a row.

An implementation is named by its package and what it adds: `amp`, our `triton` kernel, `mixed` (our
pixel decoder in half precision, as the peers have it), `last` (channels last), `compiled`, and
`graph` (compiled with CUDA graphs).
"""

import argparse
import contextlib
import gc
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from mmseg_m2f.core.deform_attn import MSDeformAttn
from tools.benchmark import deform_attn, inference, models, training
from tools.benchmark.cases import CASES, Case
from tools.benchmark.images import batch_of
from tools.benchmark.measure import FOLDER, Step
from tools.benchmark.tables import quartiles, write_csv

WARM_UP, LEAST_CALLS, MOST_CALLS = 3, 9, 90
# Seconds that the timed calls of an implementation may take, and all of it with its compilation.
BUDGET, PATIENCE = 1.0, 60
# Cycles that the GPU idles before a call of an operator: a millisecond, in which the host launches
# all of it. The bytes overwritten before each call are more than the level 2 cache holds.
SLEEP_CYCLES, CACHE_BYTES = 2_000_000, 256 * 2**20
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        seconds: median of the timed calls; `p25` and `p75` are their quartiles.
        peak_mib: of the GPU's memory in a call, above what was allocated before.
        difference: the largest of the outputs, from float64 (ops) or the stock head.
        synchronizations: how often a call makes the host wait for the GPU.
    """

    case: str
    implementation: str
    seconds: float
    p25: float
    p75: float
    peak_mib: float
    difference: float
    synchronizations: float
    device: str
    torch: str


class Table:
    """Rows that are printed and written as soon as they are known."""

    def __init__(self, section: str, out: Path, device: torch.device) -> None:
        self.path, self.device = out / f'gpu-{section}.csv', device
        self.name = 'cpu' if device.type == 'cpu' else torch.cuda.get_device_name()
        self.rows: list[Row] = []
        self.failures: list[str] = []

    def attempt(self, case: str, name: str, work: Callable[..., Any], *args: Any) -> Any:
        """Return the result of `work`, or None after saying why there is none.

        What fails of ours fails the section in the end; what fails of a peer is left out.
        """
        try:
            return work(*args)
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
            if name.startswith('mm'):  # mmcv, mmseg, mmdet
                print(f'{case} {name}: left out: {reason}', flush=True)
            else:
                traceback.print_exc(file=sys.stdout)
                print(f'{case} {name}: FAILED: {reason}', flush=True)
                self.failures.append(f'{case} {name}')
            return None

    def time(
        self, case: str, name: str, step: Step, difference: float, *, cold: bool = False
    ) -> None:
        """Time a step that ran before, and add its row."""
        p25, median, p75 = quartiles(times(step, self.device, cold=cold))
        peak, synchronizations = memory_and_synchronizations(step, self.device)
        figures = (median, p25, p75, peak, difference, synchronizations)
        self.rows.append(Row(case, name, *figures, self.name, torch.__version__))
        print(f'{case} {name}: {1e3 * median:.4g} ms, {peak:.0f} MiB', flush=True)
        write_csv(self.path, Row._fields, [row._asdict() for row in self.rows])

    def finish(self) -> None:
        """End the program with an error if something of ours failed, or if there is no row."""
        if self.failures or not self.rows:
            sys.exit(f'failed: {", ".join(self.failures) or "nothing was measured"}')


def main() -> None:
    """Run a section."""
    parser = argparse.ArgumentParser(description='Check and time the CUDA paths on one GPU.')
    parser.add_argument('section', choices=SECTIONS)
    parser.add_argument('out', type=Path, help='the folder of the tables')
    parser.add_argument('--dry-run', action='store_true', help='tiny sizes, on the CPU')
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit('torch sees no GPU here')
    device = torch.device('cpu' if args.dry_run else 'cuda')
    table = Table(args.section, args.out, device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        SECTIONS[args.section](table, device)
    table.finish()


def times(step: Step, device: torch.device, *, cold: bool) -> list[float]:
    """Return the seconds of calls of a step; on a CPU of one call.

    `cold` times the GPU alone and with a cold cache.
    """
    if device.type == 'cpu':
        start = time.perf_counter()
        step()
        return [time.perf_counter() - start]
    cache = torch.empty(CACHE_BYTES if cold else 0, dtype=torch.int8, device=device)
    once = statistics.median(_gpu_seconds(step, 3, cache))
    calls = int(BUDGET / (once + 1e-3))
    return _gpu_seconds(step, min(max(calls, LEAST_CALLS), MOST_CALLS), cache)


def _gpu_seconds(step: Step, calls: int, cache: Tensor) -> list[float]:
    events = []
    for _ in range(calls):
        if cache.numel():
            cache.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def memory_and_synchronizations(step: Step, device: torch.device) -> tuple[float, float]:
    """Return the peak of the GPU's memory in a call (MiB), and the synchronizations of a call."""
    if device.type == 'cpu':
        return math.nan, math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak, sum('called a synchronizing' in str(warning.message) for warning in noted)


def run_ops(table: Table, device: torch.device) -> None:
    """Compare and time deformable attention, forward and backward."""
    is_dry = device.type == 'cpu'
    sizes = [((64, 64), 1)] if is_dry else [((512, 512), 2), ((800, 1344), 1), ((1024, 1024), 2)]
    names = ('reference', 'mmcv') if is_dry else ('triton', 'auto', 'reference', 'mmcv')
    for size, batch in sizes:
        drawn = deform_attn.draw(size, batch)
        for dtype_name, dtype in DTYPES.items():
            case = f'{size[0]}x{size[1]}b{batch}_{dtype_name}'
            problem = drawn.to(dtype, device)
            exact = problem.to(torch.float64, device)
            expected = deform_attn.run(deform_attn.operator('reference'), exact)
            for name in names:
                difference = table.attempt(case, name, check_operator, name, problem, expected)
                if difference is not None:
                    for part in ('forward', 'backward'):
                        step = _pass(part, deform_attn.operator(name), problem)
                        table.time(f'{case}_{part}', name, step, difference, cold=True)


def check_operator(name: str, problem: deform_attn.Problem, expected: list[Tensor]) -> float:
    """Return the largest difference from float64; one that is no rounding is an error."""
    agreement = deform_attn.agreement(deform_attn.operator(name), problem, expected)
    if not agreement.holds:
        raise RuntimeError(f'differs from float64: {agreement}')
    return agreement.largest


def _pass(part: str, function: deform_attn.Operator, problem: deform_attn.Problem) -> Step:
    if part == 'forward':
        return torch.no_grad()(lambda: function(*problem.args))
    result = function(*problem.args)
    return lambda: torch.autograd.grad(result, problem.leaves, problem.gradient, retain_graph=True)


def run_models(table: Table, device: torch.device) -> None:
    """Compare and time whole models."""
    names = ['ours', 'ours-amp', 'ours-amp-mixed']
    cases = {name: case for name, case in CASES.items() if case.kind in ('inference', 'training')}
    if device.type == 'cuda':
        names += ['ours-triton', 'ours-amp-mixed-triton']
        swin = cases['training-r50-512']._replace(model='swin-l', size=(640, 640))
        cases['training-swin-l-640'] = swin
    else:
        cases = {f'{kind}-r18-64': tiny(f'{kind}-r50-512') for kind in ('inference', 'training')}
    for label, case in cases.items():
        peer = case.implementations[-1]
        compare_models(table, label, case, [peer, f'{peer}-amp', *names], device)


def run_waterfall(table: Table, device: torch.device) -> None:
    """Time the steps from the stock model to ours."""
    names = ['mmseg', 'mmseg-amp', 'ours-amp', 'ours-amp-mixed']
    if device.type == 'cpu':
        names += ['ours-amp-mixed-last']
        compare_models(table, 'inference-r18-64', tiny('inference-r50-512'), names, device)
        return
    last = 'ours-amp-mixed-triton-last'
    names += ['ours-amp-mixed-triton', last, f'{last}-compiled', f'{last}-graph']
    names += ['mmseg-amp-compiled', 'mmseg-amp-graph']
    label = 'inference-swin-l-640'
    compare_models(table, label, CASES[label], names, device)


def tiny(name: str) -> Case:
    """Return the form of a case for a dry run."""
    return CASES[name]._replace(model='r18', size=(64, 64))


def compare_models(
    table: Table, label: str, case: Case, names: Sequence[str], device: torch.device
) -> None:
    """Compare the outputs of models with those of the first, and time them."""
    models.share_weights(case.model, [case.implementations[-1]], batch_of(case))
    expected: Tensor | None = None

    def measure(name: str) -> Tensor:
        step, values = prepare(case, name, device)
        difference = 0.0 if expected is None else float((values - expected).abs().max())
        table.time(label, name, step, difference)
        return values

    for name in names:
        with patience():
            values = table.attempt(label, name, measure, name)
        expected = values if expected is None else expected
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.empty_cache()


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise TimeoutError after a while: a compiler may take minutes."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f'not done after {PATIENCE} s')

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def prepare(case: Case, name: str, device: torch.device) -> tuple[Step, Tensor]:
    """Build and warm up a model; return its step, and its outputs on the CPU in float32."""
    layout, *added = name.split('-')
    settings = {'mixed_precision': True} if 'mixed' in added else {}
    model = models.build_shared(case.model, layout, **settings).to(device)
    if 'triton' in added:
        for module in model.modules():
            if isinstance(module, MSDeformAttn):
                module.backend = 'triton'
    if 'last' in added:
        model = model.to(memory_format=torch.channels_last)
    run = _inference if case.kind == 'inference' else _training
    step, outputs = run(model, case, device, 'amp' in added)
    values = outputs().float().cpu()
    if not values.isfinite().all():
        raise RuntimeError('an output is not finite')
    compile_parts(model, added)
    for _ in range(WARM_UP if device.type == 'cuda' else 1):
        step()
    return step, values


def compile_parts(model: Any, added: Sequence[str]) -> None:
    """Compile what takes and gives tensors alone, as a name asks."""
    modes = {'compiled': 'default', 'graph': 'reduce-overhead'}
    for mode in (modes[name] for name in added if name in modes):
        torch.compiler.reset()
        head = models.head_of(model)
        if hasattr(head, 'transformer_decoder'):
            parts = [model.backbone, head.pixel_decoder, *head.transformer_decoder.layers]
        else:
            parts = [model.backbone, head]
        for part in parts:
            part.compile(mode=mode)


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Return AMP: float16 on a GPU, bfloat16 on a CPU."""
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=enabled)


def _inference(
    model: Any, case: Case, device: torch.device, amp: bool
) -> tuple[Step, Callable[[], Tensor]]:
    batch = batch_of(case)
    model.eval()

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(device, enabled=amp):
            inference.predict(model, batch)

    def outputs() -> Tensor:
        with autocast(device, enabled=amp):
            return inference.outputs(model, batch).values

    return step, outputs


def _training(
    model: Any, case: Case, device: torch.device, amp: bool
) -> tuple[Step, Callable[[], Tensor]]:
    batch = batch_of(case)
    optimizer = training.optimizer_of(model.train())
    scaler = torch.amp.GradScaler(device.type, enabled=amp and device.type == 'cuda')

    def losses() -> Tensor:
        with autocast(device, enabled=amp):
            found = training.losses(model, batch)
            return torch.stack([found[key].float() for key in sorted(found)])

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(losses().sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()

    def outputs() -> Tensor:
        with mock.patch.object(torch, 'rand', training.equal_points()), torch.no_grad():
            return losses()

    return step, outputs


SECTIONS = {'ops': run_ops, 'models': run_models, 'waterfall': run_waterfall}


if __name__ == '__main__':
    main()
