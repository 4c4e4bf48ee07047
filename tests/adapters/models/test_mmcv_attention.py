"""mmcv's operator as a back end: where it objects, and that it agrees with the reference."""

import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mmseg_m2f.adapters  # noqa: F401 - registers the back end
from mmseg_m2f.adapters.models import mmcv_attention
from mmseg_m2f.ops import backends, ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import BACKENDS
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference
from tests.ops.attention_cases import check, make_case

SHAPES = [(3, 4), (6, 7), (12, 13)]
run_mmcv = partial(ms_deform_attn, backend='mmcv')
every_dtype = pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str
)


@pytest.fixture
def log(monkeypatch, caplog):
    monkeypatch.setattr(backends, '_LOGGED', set())
    caplog.set_level(logging.INFO, logger='mmseg_m2f')
    return caplog


def test_on_a_cpu_auto_takes_another_back_end_and_mmcv_says_why():
    assert BACKENDS.names == ['mmcv', 'compiled', 'triton', 'reference']
    assert BACKENDS.choose('auto', *make_case(SHAPES)).name == 'compiled'
    with pytest.raises(ValueError, match="'mmcv' cannot run: it needs CUDA tensors, got cpu"):
        run_mmcv(*make_case(SHAPES))


@pytest.mark.cuda
@every_dtype
@pytest.mark.parametrize('batch', [1, 3])
def test_mmcv_on_cuda(batch, dtype):
    case = make_case(SHAPES, batch=batch, dtype=dtype, device='cuda')
    assert BACKENDS.choose('auto', *case).name == 'mmcv'
    check(run_mmcv, case)


class Operator:
    """Stands for mmcv's, whose arguments are those of the paper; notes the dtypes it is given."""

    def __init__(self):
        self.seen = set()

    def apply(self, value, shapes, starts, locations, weights, step):
        self.seen |= {value.dtype, locations.dtype, weights.dtype}
        levels = [tuple(shape) for shape in shapes.tolist()]
        return ms_deform_attn_reference.__wrapped__(value, levels, locations, weights)


@every_dtype
def test_mmcv_computes_in_float32_and_says_so_for_half_types(monkeypatch, log, dtype):
    operator = Operator()
    monkeypatch.setattr(mmcv_attention, '_operator', lambda: operator)
    for _ in range(2):
        check(mmcv_attention._run, make_case(SHAPES, dtype=dtype))
    assert operator.seen == {torch.float32}
    line = f"mmcv's deformable attention computes {dtype} in torch.float32"
    assert log.messages == [line] * (dtype != torch.float32)


@every_dtype
@pytest.mark.parametrize('failure', [None, 'mmcv has no operators'])
def test_without_mmcv_on_cuda_the_reference_warns_once(monkeypatch, log, failure, dtype):
    monkeypatch.setattr(mmcv_attention, '_failure_on', lambda device: failure)
    with FakeTensorMode():
        case = make_case(SHAPES, dtype=dtype, device='cuda')
        names = {BACKENDS.choose('auto', *case).name for _ in range(2)}
    [record] = log.records
    if failure is None:
        assert names == {'mmcv'}
        return
    assert names == {'reference'}
    assert record.levelname == 'WARNING'
    assert "'mmcv': mmcv has no operators" in record.message


WITHOUT_OPERATORS = """
import sys
sys.modules['mmcv._ext'] = None
try:
    import mmseg_m2f.adapters  # upstream MMSegmentation stops here
    from mmseg_m2f.registry import MODELS
    attention = dict(type='MultiScaleDeformableAttention')
    decoder = dict(type='mmseg_m2f.MSDeformAttnPixelDecoder', attention=attention)
    MODELS.build(dict(in_channels=[8, 16, 32, 64], **decoder))
except RuntimeError as error:
    print(type(error).__name__, error)
"""


def test_missing_operators_get_one_typed_error_that_says_what_to_install():
    command = [sys.executable, '-c', WITHOUT_OPERATORS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith('MissingOperatorsError')
    assert 'MMCV_WITH_OPS=1 pip install' in last
