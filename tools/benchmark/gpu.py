"""Check and time the CUDA paths on one GPU; `gpu.sh` runs this.

    python -m tools.benchmark.gpu {ops,models,waterfall} OUT [--dry-run]

Each section writes `OUT/gpu-<section>.csv`. A dry run does the same at tiny sizes on the CPU, where
the clock is the host's and what only a GPU can tell stays empty. No GPU has run this yet.

ops: deformable attention in three types, ours beside mmcv's operator, after a comparison with
float64. The time is the GPU's alone, with a cold cache.
models: inference and training of ours beside mmseg and mmdet, with AMP and in float32. `-triton`
uses our Triton kernel, `-mixed` also has the pixel decoder in half precision, as the peers do.
waterfall: ViT-L at 640 x 640, from the stock head to ours, one change a row.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import math
import os
import signal
import statistics
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.deform_attn import MSDeformAttn
from tools.benchmark import deform_attn, inference, models, training
from tools.benchmark.cases import CASES, Case
from tools.benchmark.images import batch_of, normalized, semantic_batch
from tools.benchmark.measure import FOLDER, Step
from tools.benchmark.run import write_csv

WARM_UP, ROUNDS, MOST_CALLS = 3, 3, 30
# Seconds that the calls of one implementation may take, and that one stage of the waterfall may
# take with its compilation.
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


class Subject(NamedTuple):
    """What is timed, and the difference of its outputs."""

    step: Step
    difference: float


class Table:
    """Rows that are printed and written as soon as they are known."""

    def __init__(self, section: str, out: Path, device: torch.device) -> None:
        self.path, self.device = out / f'gpu-{section}.csv', device
        self.name = 'cpu' if device.type == 'cpu' else torch.cuda.get_device_name()
        self.rows: list[Row] = []
        self.failures: list[str] = []

    def attempt(self, case: str, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, or None after saying why there is none.

        What fails of ours fails the section in the end; what fails of a peer is left out.
        """
        try:
            return work()
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
            if name in PEERS:
                print(f'{case} {name}: left out: {reason}', flush=True)
            else:
                traceback.print_exc(file=sys.stdout)
                print(f'{case} {name}: FAILED: {reason}', flush=True)
                self.failures.append(f'{case} {name}')
            return None

    def time(self, case: str, subjects: Mapping[str, Subject], *, cold: bool = False) -> None:
        """Time the subjects by turns and add a row for each."""
        seconds = time_by_turns({n: s.step for n, s in subjects.items()}, self.device, cold=cold)
        for name, subject in subjects.items():
            p25, median, p75 = quartiles(seconds[name])
            peak, synchronizations = memory_and_synchronizations(subject.step, self.device)
            figures = (median, p25, p75, peak, subject.difference, synchronizations)
            self.rows.append(Row(case, name, *figures, self.name, torch.__version__))
            print(f'{case} {name}: {1e3 * median:.4g} ms, {peak:.0f} MiB', flush=True)
        write_csv(self.path, Row._fields, [row._asdict() for row in self.rows])

    def finish(self) -> None:
        """End with an error if something of ours failed, or if there is no row.

        Raises:
            SystemExit: see above.
        """
        if self.failures or not self.rows:
            sys.exit(f'failed: {", ".join(self.failures) or "nothing was measured"}')


PEERS = ('mmcv', 'mmseg', 'mmdet', 'stock', 'stock-amp', 'stock-compiled', 'stock-graph')


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


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the 25th, 50th and 75th percentile."""
    if len(values) == 1:
        return [*values] * 3
    return statistics.quantiles(values, n=4, method='inclusive')


def time_by_turns(
    steps: Mapping[str, Step], device: torch.device, *, cold: bool
) -> dict[str, list[float]]:
    """Return the seconds of calls of each step, in turns (A B C C B A ...).

    Args:
        steps: each has been called before.
        device: where they run; on a CPU each is timed once.
        cold: time the GPU alone and with a cold cache.
    """
    if device.type == 'cpu':
        return {name: [_host_seconds(step)] for name, step in steps.items()}
    cache = torch.empty(CACHE_BYTES if cold else 0, dtype=torch.int8, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    once = {name: statistics.median(_gpu_seconds(step, 3, cache)) for name, step in steps.items()}
    for turn in range(ROUNDS):
        for name in list(steps)[:: 1 if turn % 2 == 0 else -1]:
            calls = int(BUDGET / ROUNDS / (once[name] + 1e-3))
            seconds[name] += _gpu_seconds(steps[name], min(max(calls, 3), MOST_CALLS), cache)
    return seconds


def _host_seconds(step: Step) -> float:
    import time

    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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
            expected = deform_attn.run(
                deform_attn.operator('reference'), problem.to(torch.float64, device)
            )
            checked = {}
            for name in names:
                found = table.attempt(
                    case, name, functools.partial(_checked_operator, name, problem, expected)
                )
                if found is not None:
                    checked[name] = found
            for part in ('forward', 'backward'):
                subjects = {
                    name: Subject(_pass(part, deform_attn.operator(name), problem), difference)
                    for name, difference in checked.items()
                }
                table.time(f'{case}_{part}', subjects, cold=True)


def _checked_operator(name: str, problem: deform_attn.Problem, expected: list[Tensor]) -> float:
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


def model_cases(device: torch.device) -> dict[str, Case]:
    """Return the cases of the section `models`."""
    if device.type == 'cpu':
        names = ('inference-r50-512', 'training-r50-512')
        return {
            name.replace('r50-512', 'r18-64'): CASES[name]._replace(model='r18', size=(64, 64))
            for name in names
        }
    cases = {name: case for name, case in CASES.items() if case.kind in ('inference', 'training')}
    swin = cases['training-r50-512']._replace(model='swin-l', size=(640, 640))
    return {**cases, 'training-swin-l-640': swin}


def run_models(table: Table, device: torch.device) -> None:
    """Compare and time whole models, each case with AMP and in float32."""
    kernel = 'ours' if device.type == 'cpu' else 'ours-triton'
    for name, case in model_cases(device).items():
        peer = case.implementations[-1]
        models.share_weights(case.model, [peer], batch_of(case))
        for precision in ('fp32', 'amp'):
            mixed = [f'{kernel}-mixed'] if precision == 'amp' else []
            label, expected = f'{name}_{precision}', None
            # The peer comes first: the others are compared with its outputs.
            for implementation in dict.fromkeys([peer, 'ours', kernel, *mixed]):
                work = functools.partial(
                    _model, case, implementation, device, precision == 'amp', expected
                )
                found = table.attempt(label, implementation, work)
                if found is None:
                    continue
                subject, values = found
                expected = values if implementation == peer else expected
                timing = functools.partial(table.time, label, {implementation: subject})
                table.attempt(label, implementation, timing)
                del found, subject
                gc.collect()
                torch.cuda.empty_cache()


def _model(
    case: Case, implementation: str, device: torch.device, amp: bool, expected: Tensor | None
) -> tuple[Subject, Tensor]:
    """Build and warm up a model; return its step and its outputs, on the CPU in float32."""
    layout, *variant = implementation.split('-')
    settings = {'mixed_precision': True} if 'mixed' in variant else {}
    model = models.build_shared(case.model, layout, **settings).to(device)
    if 'triton' in variant:
        use_backend(model, 'triton')
    run = _inference if case.kind == 'inference' else _training
    step, values = run(model, case, device, amp)
    for _ in range(WARM_UP if device.type == 'cuda' else 1):
        step()
    values = values.float().cpu()
    if not values.isfinite().all():
        raise RuntimeError('an output is not finite')
    difference = math.nan if expected is None else float((values - expected).abs().max())
    return Subject(step, difference), values


def use_backend(model: nn.Module, name: str) -> None:
    """Let all deformable attention of ours be done by the back end `name`."""
    found = [module for module in model.modules() if isinstance(module, MSDeformAttn)]
    if not found:
        raise ValueError(f'{type(model).__name__} has no deformable attention of ours')
    for module in found:
        module.backend = name


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Return AMP: float16 on a GPU, bfloat16 on a CPU."""
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=enabled)


def _inference(model: Any, case: Case, device: torch.device, amp: bool) -> tuple[Step, Tensor]:
    batch = batch_of(case)
    model.eval()

    def step() -> None:
        with autocast(device, enabled=amp):
            inference.predict(model, batch)

    with autocast(device, enabled=amp):
        return step, inference.outputs(model, batch).values


def _training(model: Any, case: Case, device: torch.device, amp: bool) -> tuple[Step, Tensor]:
    batch = batch_of(case)
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=amp and device.type == 'cuda')

    def losses() -> Tensor:
        with autocast(device, enabled=amp):
            found = training.losses(model, batch)
            return torch.stack([found[key].float() for key in sorted(found)])

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(losses().sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 0.01)
        scaler.step(optimizer)
        scaler.update()

    with mock.patch.object(torch, 'rand', training.equal_points()), torch.no_grad():
        return step, losses()


class Size(NamedTuple):
    """The transformer, the image and the head of the waterfall."""

    dim: int
    heads: int
    depth: int
    side: int
    queries: int


LARGE, TINY = Size(1024, 16, 24, 640, 200), Size(32, 2, 1, 64, 10)
CHANNELS = (256, 512, 1024, 2048)


class Stage(NamedTuple):
    """A row of the waterfall; `mode` is that of `torch.compile`, None if it is not compiled."""

    layout: str = 'ours'
    amp: bool = True
    backend: str = 'auto'
    mixed: bool = False
    channels_last: bool = False
    mode: str | None = None


FIRST = {
    'stock': Stage('mmdet', amp=False),
    'stock-amp': Stage('mmdet'),
    'head': Stage(amp=False),
    'head-amp': Stage(),
    'mixed': Stage(mixed=True),
}
LAST = Stage(backend='triton', mixed=True, channels_last=True)
STAGES = {
    **FIRST,
    'kernel': Stage(backend='triton', mixed=True),
    'channels-last': LAST,
    'compiled': LAST._replace(mode='default'),
    'graph': LAST._replace(mode='reduce-overhead'),
    'stock-compiled': Stage('mmdet', mode='default'),
    'stock-graph': Stage('mmdet', mode='reduce-overhead'),
}


class Block(nn.Module):
    """One layer of a vision transformer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend, then apply the MLP."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class Network(nn.Module):
    """A plain vision transformer with maps from its last layer (ViTDet's way), and a head."""

    def __init__(self, size: Size, head: nn.Module, layout: str) -> None:
        super().__init__()
        dim, grid = size.dim, size.side // 16
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid * grid, dim))
        self.blocks = nn.Sequential(*(Block(dim, size.heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(dim)
        finer = [nn.ConvTranspose2d(dim, dim // 2, 2, 2), nn.GELU()]
        self.maps = nn.ModuleList(
            [
                nn.Sequential(*finer, nn.ConvTranspose2d(dim // 2, CHANNELS[0], 2, 2)),
                nn.ConvTranspose2d(dim, CHANNELS[1], 2, 2),
                nn.Conv2d(dim, CHANNELS[2], 1),
                nn.Conv2d(dim, CHANNELS[3], 2, 2),
            ]
        )
        self.head, self.is_ours = head, layout == 'ours'

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class and mask logits of the last prediction."""
        patches = self.patches(images)
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        last = self.norm(self.blocks(tokens)).transpose(1, 2).reshape(patches.shape)
        maps = [layer(last) for layer in self.maps]
        if self.is_ours:
            return self.head(maps)
        classes, masks = self.head(maps, [])
        return classes[-1], masks[-1]


def run_waterfall(table: Table, device: torch.device) -> None:
    """Time every stage, from the normalized image to class and mask logits."""
    is_dry = device.type == 'cpu'
    size = TINY if is_dry else LARGE
    batch = semantic_batch(size.side, 1)
    images = normalized(batch).to(device)
    spec = models.SPECS['panoptic']._replace(num_queries=size.queries)
    with mock.patch.dict(models.SPECS, panoptic=spec):
        models.share_weights('panoptic', ['mmdet'], batch)
        networks = {
            layout: Network(size, models.build_shared('panoptic', layout).panoptic_head, layout)
            for layout in ('ours', 'mmdet')
        }
    expected = None
    for name, stage in (FIRST if is_dry else STAGES).items():
        network = networks[stage.layout].to(device).eval()
        with patience():
            found = table.attempt(
                f'vit-l_{size.side}', name, functools.partial(_stage, network, stage, images)
            )
            if found is None:
                continue
            step, masks = found
            expected = masks if expected is None else expected
            subject = Subject(step, float((masks - expected).abs().max()))
            timing = functools.partial(table.time, f'vit-l_{size.side}', {name: subject})
            table.attempt(f'vit-l_{size.side}', name, timing)


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


def _stage(network: Network, stage: Stage, images: Tensor) -> tuple[Step, Tensor]:
    """Bring a network to a stage; return its step and its mask logits."""
    if network.is_ours:
        use_backend(network.head, stage.backend)
        decoder: Any = network.head.pixel_decoder
        decoder.config = dataclasses.replace(decoder.config, mixed_precision=stage.mixed)
    layout = torch.channels_last if stage.channels_last else torch.contiguous_format
    model: Any = network  # torch's annotations do not know the argument
    model.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    call: Callable[[Tensor], Any] = network
    if stage.mode is not None:
        torch.compiler.reset()
        call = torch.compile(network, mode=stage.mode)
    amp = autocast(images.device, enabled=stage.amp)

    def step() -> Any:
        if stage.mode == 'reduce-overhead':
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), amp:
            return call(images)

    for _ in range(WARM_UP if images.device.type == 'cuda' else 1):
        step()
    # The next run of a graph overwrites its outputs.
    return step, step()[1].float().cpu()


SECTIONS = {'ops': run_ops, 'models': run_models, 'waterfall': run_waterfall}


if __name__ == '__main__':
    main()
