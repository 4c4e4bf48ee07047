"""Where the time of a training step goes on the CPU, and how fast each kind of work could be.

    python -m tools.benchmark.breakdown --threads 2 --csv docs/benchmarks/breakdown_fp32_cpu.csv

Each operator of a step is timed as it is called, the median over steps; what is left of a step that
nobody watches is Python, autograd and SciPy. All run in one process, where after ours the others
keep freed memory, too. ``floor_s`` is measured in the same process: the arithmetic of products,
convolutions and attention at the speed of one large product, and of the rest what the operators
read and write at the speed of one large copy. Deformable attention has none: it gathers.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from mmseg_m2f.cpu.linear import linear
from tools.benchmark import harness, train_step
from tools.benchmark.counting import formulas

# The kind of work by the beginning of the operator's name; the first that fits.
KINDS = {
    'mkldnn::_linear': 'products',
    'aten::mm': 'products',
    'aten::addmm': 'products',
    'aten::bmm': 'products',
    'aten::baddbmm': 'products',
    'mmseg_m2f::convolve_3x3': 'convolutions',
    'aten::convolution': 'convolutions',
    'aten::_scaled_dot_product': 'masked attention',
    'mmseg_m2f::ms_deform_attn': 'deformable attention',
    'aten::grid_sampler': 'points',
    'aten::_embedding_bag': 'points',
    'aten::topk': 'points',
    'aten::rand': 'points',
    'aten::uniform_': 'points',
    'aten::gather': 'points',
    'aten::index': 'points',
    'aten::native_layer_norm': 'norms',
    'aten::native_group_norm': 'norms',
    'aten::native_batch_norm': 'norms',
    'aten::_fused_adamw': 'optimiser',
    'aten::_foreach': 'optimiser',
}
ARITHMETIC = ('products', 'convolutions', 'masked attention')
OTHERS, OUTSIDE, STEP = 'sums, activations, copies', 'outside of operators', 'whole step'


class Row(NamedTuple):
    """One kind of work in one step."""

    case: str
    impl: str
    work: str
    calls: int
    median_s: float
    share: float
    floor_s: float
    threads: int
    torch: str
    commit: str


class Speeds(NamedTuple):
    """Of this machine now: FLOPs of a large product and bytes of a large copy, each per second."""

    flops: float
    bytes: float


class _Watching(TorchDispatchMode):
    """Seconds, calls and floors of each kind of work."""

    def __init__(self, speeds: Speeds) -> None:
        super().__init__()
        self.speeds = speeds
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.floors: dict[str, float] = defaultdict(float)
        ours = {operator: shape_wrapper(formula) for operator, formula in formulas().items()}
        self._formulas = {**flop_registry, **ours}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Time the call."""
        kwargs = kwargs or {}
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        kind = kind_of(func.name())
        self.seconds[kind] += seconds
        self.calls[kind] += 1
        self.floors[kind] += self._floor(kind, func, args, kwargs, result)
        return result

    def _floor(self, kind: str, func: Any, args: Any, kwargs: Any, result: Any) -> float:
        formula = self._formulas.get(func.overloadpacket)
        if kind in ARITHMETIC and formula is not None:
            return formula(*args, **kwargs, out_val=result) / self.speeds.flops
        if kind == 'deformable attention' or getattr(func, 'is_view', False):
            return 0.0
        return num_bytes([args, kwargs, result]) / self.speeds.bytes


def kind_of(name: str) -> str:
    """Of an operator, such as ``aten::mm``."""
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), OTHERS)


def num_bytes(values: Any) -> int:
    """Of the tensors among them, each once."""
    tensors = {leaf.data_ptr(): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; with ``--csv`` write it."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--case', choices=train_step.NAMES, default='r50_512')
    parser.add_argument('--implementations', nargs='+', default=['ours', 'mmseg'])
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--csv', type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[harness.FOLDER] = folder
        train_step.disagreement(args.case, [])  # leaves the weights that all share
        for implementation in args.implementations:
            rows += broken_down(args.case, implementation, args.steps)
    print('\n'.join(f'{row.impl:>8} {row.work:>26}: {row.calls:6d} calls {row.median_s:8.4f} s, '
                    f'{row.share:6.1%}, floor {row.floor_s:.4f} s' for row in rows))  # fmt: skip
    if args.csv:
        harness.write_csv(args.csv, rows)


def broken_down(case: str, implementation: str, steps: int) -> list[Row]:
    """The rows of one implementation, the most time first, the whole step last."""
    step = train_step.prepare(case, implementation)
    for _ in range(2):
        step()
    speeds = measured_speeds()
    watched = [watch(step, speeds) for _ in range(steps)]
    whole = statistics.median(timed(step) for _ in range(steps))
    seconds = {
        kind: statistics.median(watching.seconds[kind] for watching in watched)
        for kind in watched[-1].seconds
    }
    seconds[OUTSIDE] = max(whole - sum(seconds.values()), 0.0)
    order = sorted(seconds, key=lambda kind: -seconds[kind])
    last = watched[-1]
    seconds[STEP] = whole
    floors: dict[str, float] = {**last.floors, OUTSIDE: 0.0, STEP: sum(last.floors.values())}
    calls = {**last.calls, OUTSIDE: 0, STEP: sum(last.calls.values())}
    end = (torch.get_num_threads(), torch.__version__, harness.commit())
    return [
        Row(case, implementation, kind, calls[kind], seconds[kind], seconds[kind] / whole,
            floors[kind], *end)
        for kind in (*order, STEP)
    ]  # fmt: skip


def watch(step: Callable[[], Any], speeds: Speeds) -> _Watching:
    """One step."""
    with _Watching(speeds) as watching:
        step()
    return watching


def timed(step: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@torch.no_grad()
def measured_speeds() -> Speeds:
    """The best of some tries."""
    x, weight, target = torch.randn(8192, 1024), torch.randn(1024, 1024), torch.empty(2**25)
    source = torch.ones_like(target)
    product = min(timed(functools.partial(linear, x, weight, None)) for _ in range(10))
    copy = min(timed(functools.partial(target.copy_, source)) for _ in range(10))
    return Speeds(2 * x.numel() * len(weight) / product, 2 * 4 * target.numel() / copy)


if __name__ == '__main__':
    main()
