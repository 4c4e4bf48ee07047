"""Counts of a training step and a prediction, which noise cannot touch, stay within bounds.

A change that needs less lowers the bounds; one that needs more says why. Calls and bytes have 5 %
of room for other versions of torch. The reference of deformable attention runs, so that no compiler
is needed.
"""

import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmseg_m2f.core import deform_attn
from tools.benchmark import inference, measure, models, training
from tools.benchmark.cases import CASES
from tools.benchmark.images import batch_of

# Operators that wait for a GPU: a value or a size that depends on the data goes to the host.
WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim')
WAITING += ('unique_consecutive', 'bincount')
INDEXING = ('index', 'index_put', 'index_put_', '_index_put_impl_')
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
ATTENTION_FLOPS = {
    ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATTENTION_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}


class Counts(NamedTuple):
    """FLOPs of products, attention and convolutions, calls of ATen, bytes kept, and waits."""

    flops: int
    calls: int
    saved_bytes: int
    synchronizations: int


BOUNDS = {
    ('semantic', 'training'): Counts(68_000_000_000, 7_930, 216_000_000, 2),
    ('semantic', 'inference'): Counts(9_600_000_000, 2_160, 0, 0),
    # Instances are chosen before their masks are encoded: their number goes to the host first.
    ('panoptic', 'inference'): Counts(40_100_000_000, 2_490, 0, 8),
}


class Operators(TorchDispatchMode):
    """Counts calls of ATen's operators, and those that would wait for a GPU."""

    calls = waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix('aten::').split('.')[0]
        # The host must know how many elements a boolean index has.
        is_boolean = name in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.calls += func.namespace == 'aten'
        self.waits += is_boolean or name in WAITING
        return func(*args, **(kwargs or {}))


class CopiesToHost(TorchFunctionMode):
    """Counts methods that copy to the host; on a CPU they reach no operator."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func in (Tensor.cpu, Tensor.tolist)
        return func(*args, **(kwargs or {}))


def count(step, parameters=()):
    """Count one call of `step`; bytes kept for backward are counted without `parameters`."""
    # By address, so that a storage counts once. The tensors are kept: no address comes back.
    saved = {parameter.untyped_storage().data_ptr(): None for parameter in parameters}

    def pack(tensor):
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    flops = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, CopiesToHost() as copies, Operators() as found, flops:
        step()
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values() if tensor is not None)
    return Counts(flops.get_total_flops(), found.calls, kept, found.waits + copies.calls)


@pytest.fixture(scope='module', autouse=True)
def reference(tmp_path_factory):
    operator = functools.partial(deform_attn.ms_deform_attn, backend='reference')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(measure.FOLDER, str(tmp_path_factory.mktemp('weights')))
        patch.setattr(deform_attn, 'ms_deform_attn', lambda *args, **_: operator(*args[:5]))
        yield


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@pytest.mark.parametrize(('model', 'kind'), list(BOUNDS))
def test_within_the_bounds(model, kind):
    case = CASES['inference-panoptic-800x1333']._replace(size=(200, 333))
    if model == 'semantic':
        batch = 2 if kind == 'training' else 1
        case = CASES['inference-r50-512']._replace(model='r18', size=(128, 128), batch=batch)
    models.share_weights(case.model, [], batch_of(case))
    built = models.build_shared(case.model, 'ours')
    if kind == 'training':
        built.train()

        def step():
            torch.stack(list(training.losses(built, batch_of(case)).values())).sum().backward()

        found = count(step, built.parameters())
    else:
        # The counter of FLOPs looks for the graph of whatever asks for a gradient.
        built.eval().requires_grad_(False)
        inference.predict(built, batch_of(case))  # what is made once and kept is no part of it
        found = count(lambda: inference.predict(built, batch_of(case)))
    assert all(a <= b for a, b in zip(found, BOUNDS[model, kind], strict=True)), found


def test_counts_by_hand():
    """Products of 2 x 3 and 3 x 4; 3 x 4 floats are kept, the parameter is not counted.

    Attention with 2 heads, 3 queries, 5 keys, 4 channels: two products, five more in the backward
    pass.
    """
    weight = torch.ones(2, 3, requires_grad=True)
    x = torch.ones(3, 4)
    flops, calls, saved_bytes, synchronizations = count(lambda: (weight @ x).sum().item(), [weight])
    assert (flops, saved_bytes, synchronizations) == (2 * 2 * 3 * 4, 3 * 4 * 4, 1)
    assert calls in (3, 4)  # product, sum, the scalar, which may be detached first
    layer = nn.Linear(3, 4)
    assert count(lambda: layer(torch.ones(1, 5, 3))).flops == 2 * 5 * 3 * 4

    query = torch.ones(1, 2, 3, 4, requires_grad=True)
    key = torch.ones(1, 2, 5, 4, requires_grad=True)
    attend = functools.partial(F.scaled_dot_product_attention, query, key, key)
    product = 2 * 2 * 3 * 5 * 4
    assert count(attend).flops == 2 * product
    assert count(lambda: attend().sum().backward()).flops == (2 + 5) * product


@pytest.mark.parametrize(
    ('step', 'waits'),
    [
        (lambda x: x.nonzero(), True),
        (lambda x: x[x > 0], True),
        (lambda x: x.index_put_((x > 0,), torch.zeros(())), True),
        (lambda x: x.unique(), True),
        (lambda x: x.cpu(), True),
        (lambda x: x.tolist(), True),
        (lambda x: bool(x.any()), True),
        (lambda x: x[torch.tensor([0, 1])].add(1).where(x[:2] > 0, 0), False),
    ],
)
def test_which_steps_wait_for_a_gpu(step, waits):
    assert (count(lambda: step(torch.ones(4))).synchronizations > 0) == waits
