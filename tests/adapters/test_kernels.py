"""mmcv's operator as a back end: where it objects, and that it agrees with the reference."""

import subprocess
import sys

import pytest
import torch

import mmseg_m2f.adapters  # noqa: F401 - registers the back end
from mmseg_m2f.adapters.kernels import is_mmcv_attention
from mmseg_m2f.ops import ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import BACKENDS

SHAPES = [(3, 4), (6, 7), (12, 13)]


def inputs(device='cpu', dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, num_tokens, 4, 8, generator=generator)
    # A tenth of the points lies outside the maps.
    locations = torch.rand(batch, 11, 4, 3, 2, 2, generator=generator) * 1.2 - 0.1
    weights = torch.rand(batch, 11, 4, 3, 2, generator=generator)
    tensors = [x.to(device, dtype).requires_grad_() for x in (value, locations, weights)]
    return tensors[0], SHAPES, tensors[1], tensors[2]


def test_mmcv_is_offered_first_and_the_reference_last():
    assert BACKENDS.names == ['mmcv', 'embedding_bag', 'reference']


def test_a_cpu_tensor_stays_in_pytorch_and_mmcv_says_why():
    assert BACKENDS.choose('auto', *inputs()).name == 'reference'
    with torch.no_grad():
        assert BACKENDS.choose('auto', *inputs()).name == 'embedding_bag'
    with pytest.raises(ValueError, match="'mmcv' cannot run: it needs CUDA tensors, got cpu"):
        ms_deform_attn(*inputs(), backend='mmcv')


def test_the_name_of_mmcv_s_module_is_known_with_and_without_scope():
    names = ['MultiScaleDeformableAttention', 'mmcv.MultiScaleDeformableAttention']
    assert all(is_mmcv_attention(name) for name in names)
    assert not is_mmcv_attention('MSDeformAttn')
    assert not is_mmcv_attention(None)


@pytest.mark.cuda
@pytest.mark.parametrize('batch', [1, 3])
def test_mmcv_on_cuda_equals_the_reference(batch):
    args = inputs('cuda', batch=batch)
    assert BACKENDS.choose('auto', *args).name == 'mmcv'
    results = []
    for backend in ('mmcv', 'reference'):
        out = ms_deform_attn(*args, backend=backend)
        tensors = [args[0], args[2], args[3]]
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for name, ours, reference in zip(
        ('output', 'value', 'locations', 'weights'), *results, strict=True
    ):
        # float32 sums of 24 products in another order; locations are scaled by the map's width.
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_on_cuda_keep_exact_locations(dtype):
    value, shapes, locations, weights = inputs('cuda')
    args = (value.to(dtype), shapes, locations, weights)
    assert BACKENDS.choose('auto', *args).name == 'reference'
    with pytest.raises(ValueError, match='one dtype'):
        ms_deform_attn(*args, backend='mmcv')


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
