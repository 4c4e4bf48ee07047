"""The Triton back end: its cases in Triton's interpreter (or on a GPU), its compiled kernels."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmseg_m2f.ops.ms_deform_attn import triton as backend
from tests.ops.attention_cases import make_case

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, '-m', 'pytest', '-q', '-o', 'addopts=', '-p', 'no:cacheprovider']
needs_triton = pytest.mark.skipif(backend._MISSING is not None, reason=str(backend._MISSING))


@needs_triton
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def test_cases_of_the_kernels(device):
    """They run in another process: ``torch.compile`` cannot take the tests' shape checker."""
    variables = {'TRITON_INTERPRET': '1' if device == 'cpu' else '0', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [*PYTEST, 'tests/ops/triton_cases.py'],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def gpu(monkeypatch):
    """Tensors that claim to be on a GPU; set ``major`` to give it another age."""
    properties = SimpleNamespace(major=9)
    monkeypatch.setattr(backend, '_MISSING', None)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    with FakeTensorMode():
        yield properties


def objection(level_shapes=((3, 4),), **change):
    return backend.why_not(*make_case(level_shapes, **{'device': 'cuda', **change}))


def test_what_it_runs_and_what_it_objects_to(gpu):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert objection(dtype=dtype) is None
    assert 'made for NVIDIA GPUs, got cpu' in objection(device='cpu')
    assert 'takes float32, float16 and bfloat16' in objection(dtype=torch.float64)
    assert 'heads of 8, 16, 32, 64 or 128 channels, got 24' in objection(head_dim=24)
    assert 'up to 64 samples per query and head, got 65' in objection(points=65)
    large = objection([(2**12, 2**11)], heads=8, head_dim=32)
    assert re.search(r'fewer than 2\^31 numbers per image, got 2147483648', large)
    gpu.major = 7
    assert 'compute capability 8.0' in objection()


def test_it_says_that_triton_is_missing_or_old(gpu, monkeypatch):
    monkeypatch.setattr(backend, 'find_spec', lambda name: None)
    monkeypatch.setattr(backend, '_MISSING', backend._missing())
    assert 'Triton is not installed' in objection()
    monkeypatch.setattr(backend, 'find_spec', lambda name: name)
    monkeypatch.setattr(backend.importlib.metadata, 'version', lambda name: '3.5.1')
    assert backend._missing() == 'it needs Triton 3.6 or newer, got 3.5.1'
    monkeypatch.setattr(backend.importlib.metadata, 'version', lambda name: '3.10.0+git1')
    assert backend._missing() is None


def test_importing_the_back_end_does_not_import_triton():
    code = 'import sys, mmseg_m2f.ops.ms_deform_attn.triton\nassert "triton" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_zero_queries_give_an_empty_result_with_a_graph():
    case = make_case([(3, 4)], queries=0)
    out = backend.ms_deform_attn_triton(*case._replace(value=case.value.requires_grad_()))
    assert out.shape == (2, 0, 16)
    out.sum().backward()
    assert not case.value.grad.any()


@needs_triton
def test_no_compiled_kernel_spills(monkeypatch, tmp_path):
    from tests.ops import triton_compile_check as check

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    rows = check.usages()
    assert len(rows) == 12
    assert not [row for row in rows if row.spilled], rows
    # With few registers the check sees spills.
    assert check.usage(check.triton_kernels.forward_kernel, 'fp32', 90, maxnreg=24).spilled > 0


@pytest.fixture
def pretended_gpu(monkeypatch):
    """For Triton, which asks it for little more than its generation until it launches."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    number = 99
    pretended = SimpleNamespace(
        get_current_device=lambda: number,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
    )
    # Its own reset asks for a real driver.
    monkeypatch.setattr(driver, '_active', pretended)
    return number


def compile_only(run, *args, **options):
    """All that a launch does but the launch."""
    return run(*args, **{**options, 'warmup': True})


@needs_triton
def test_one_compiled_kernel_serves_all_sizes(tmp_path, pretended_gpu, monkeypatch):
    from mmseg_m2f.ops.ms_deform_attn import triton_launch

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernels = triton_launch.forward_kernel, triton_launch.backward_kernel
    for kernel in kernels:
        monkeypatch.setattr(kernel, 'run', partial(compile_only, kernel.run))
    for batch, queries, *sizes in [(1, 1, 1, 1), (2, 5, 3, 4), (1, 64, 16, 32), (2, 33, 1, 17)]:
        case = make_case([sizes], batch=batch, queries=queries, head_dim=16)
        inputs = case._replace(level_shapes=sizes)
        triton_launch.launch_backward(triton_launch.launch_forward(*inputs), *inputs)
    assert [len(kernel.device_caches[pretended_gpu][0]) for kernel in kernels] == [1, 1]
