"""mmcv's operator as a back end: where it objects, and that it agrees with the reference."""

import logging
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mmseg_m2f.adapters  # noqa: F401 - registers the back end
from mmseg_m2f.adapters.models import mmcv_attention
from mmseg_m2f.ops import backends, ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import BACKENDS
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference

SHAPES = [(3, 4), (6, 7), (12, 13)]


def inputs(device='cpu', dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, num_tokens, 4, 8, generator=generator)
    reference_points = torch.rand(11, 2, generator=generator).to(device)
    # Some of the points lie outside the maps.
    offsets = torch.randn(batch, 11, 4, 3, 2, 2, generator=generator) * 2
    logits = torch.randn(batch, 11, 4, 3, 2, generator=generator)
    tensors = [x.to(device, dtype).requires_grad_() for x in (value, offsets, logits)]
    return tensors[0], SHAPES, reference_points, tensors[1], tensors[2]


def test_mmcv_is_offered_first_and_the_reference_last():
    assert BACKENDS.names == ['mmcv', 'compiled', 'triton', 'reference']


def test_a_cpu_tensor_stays_on_the_cpu_and_mmcv_says_why():
    assert BACKENDS.choose('auto', *inputs()).name == 'compiled'
    with pytest.raises(ValueError, match="'mmcv' cannot run: it needs CUDA tensors, got cpu"):
        ms_deform_attn(*inputs(), backend='mmcv')


@pytest.mark.cuda
@pytest.mark.parametrize('batch', [1, 3])
def test_mmcv_on_cuda_equals_the_reference(batch):
    args = inputs('cuda', batch=batch)
    assert BACKENDS.choose('auto', *args).name == 'mmcv'
    results = []
    for backend in ('mmcv', 'reference'):
        out = ms_deform_attn(*args, backend=backend)
        tensors = [args[0], args[3], args[4]]
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for name, ours, reference in zip(
        ('output', 'value', 'offsets', 'logits'), *results, strict=True
    ):
        # float32 sums of 24 products in another order.
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_on_cuda_are_computed_in_float32(dtype):
    value, *rest = inputs('cuda')
    exact = ms_deform_attn(value.to(dtype).float(), *rest, backend='mmcv')
    got = ms_deform_attn(value.to(dtype), *rest)
    assert torch.equal(got, exact.to(dtype))


@pytest.fixture
def log(monkeypatch, caplog):
    monkeypatch.setattr(backends, '_LOGGED', set())
    caplog.set_level(logging.INFO, logger='mmseg_m2f')
    return caplog


def test_auto_takes_mmcv_on_cuda_for_every_dtype(monkeypatch):
    monkeypatch.setattr(mmcv_attention, '_failure_on', lambda device: None)
    with FakeTensorMode():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert BACKENDS.choose('auto', *fake_cuda_inputs(dtype)).name == 'mmcv'


def test_without_mmcv_on_cuda_the_reference_warns_once(monkeypatch, log):
    monkeypatch.setattr(mmcv_attention, '_failure_on', lambda device: 'mmcv has no operators')
    with FakeTensorMode():
        args = fake_cuda_inputs(torch.float16)
        assert BACKENDS.choose('auto', *args).name == 'reference'
        assert BACKENDS.choose('auto', *args).name == 'reference'
    [record] = log.records
    assert record.levelname == 'WARNING'
    assert "'mmcv': mmcv has no operators" in record.message


def fake_cuda_inputs(dtype):
    return (
        torch.zeros(2, 12, 4, 8, dtype=dtype, device='cuda'),
        [(3, 4)],
        torch.zeros(5, 2, device='cuda'),
        torch.zeros(2, 5, 4, 1, 2, 2, device='cuda'),
        torch.zeros(2, 5, 4, 1, 2, device='cuda'),
    )


class Operator:
    """Stands for mmcv's, whose arguments are those of the paper; notes the dtypes it is given."""

    def __init__(self):
        self.seen = set()

    def apply(self, value, shapes, starts, locations, weights, step):
        self.seen |= {value.dtype, locations.dtype, weights.dtype}
        levels = [tuple(shape) for shape in shapes.tolist()]
        reference = ms_deform_attn_reference.__wrapped__
        return reference(value, levels, locations, weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_types_reach_mmcv_in_float32_and_come_back_rounded(monkeypatch, log, dtype):
    operator = Operator()
    monkeypatch.setattr(mmcv_attention, '_operator', lambda: operator)
    value, *rest = inputs()
    got = mmcv_attention._run(value.to(dtype), *rest)
    assert operator.seen == {torch.float32}
    exact = ms_deform_attn(value.to(dtype).double(), *rest, backend='reference')
    # Half a unit in the last place of the type, beside the float32 sums of 24 products.
    epsilon = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(got.double(), exact, rtol=epsilon, atol=1e-5)
    got.sum().backward()
    assert value.grad.isfinite().all()
    mmcv_attention._run(value.to(dtype), *rest)
    assert log.messages == [f"mmcv's deformable attention computes {dtype} in torch.float32"]


WITHOUT_OPERATORS = """
import sys
sys.modules['mmcv._ext'] = None
try:
    import mmseg_m2f.adapters  # upstream MMSegmentation stops here
    from mmseg_m2f.registry import MODELS
    attention = dict(type='MultiScaleDeformableAttention')
    MODELS.build(
        dict(
            type='mmseg_m2f.MSDeformAttnPixelDecoder',
            in_channels=[8, 16, 32, 64],
            attention=attention,
        )
    )
except RuntimeError as error:
    print(type(error).__name__, error)
"""


def test_missing_operators_get_one_typed_error_that_says_what_to_install():
    command = [sys.executable, '-c', WITHOUT_OPERATORS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith('MissingOperatorsError')
    assert 'MMCV_WITH_OPS=1 pip install' in last
