"""Mixed precision: float32 on a CPU unless told otherwise, scaled float16 on an accelerator."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmseg_m2f.adapters.training.amp import AmpOptimWrapper


def build(device='cpu', optimizer=None, **options):
    """Return a linear layer and a wrapper with SGD, or with another optimizer."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to(device)
    optimizer = {'type': 'SGD', 'lr': 0.1, **(optimizer or {})}
    config = {'type': 'mmseg_m2f.AmpOptimWrapper', 'optimizer': optimizer, **options}
    return model, build_optim_wrapper(model, config)


def update(wrapper, model, seed=0):
    """One training step; returns the model's output."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    with wrapper.optim_context(model):
        outputs = model(inputs.to(model.weight.device))
    wrapper.update_params(outputs.float().square().mean())
    return outputs


def check_training(model, wrapper, dtype):
    outputs = [update(wrapper, model) for _ in range(20)]
    assert {output.dtype for output in outputs} == {dtype}
    assert model.weight.dtype == torch.float32
    first, *_, last = (output.float().square().mean() for output in outputs)
    assert last < 0.7 * first


@pytest.mark.parametrize(
    ('asked', 'native', 'chosen'),
    [
        (None, True, 'float32'),
        ('float16', True, 'float32'),
        (torch.bfloat16, False, 'bfloat16'),
        ('float32', True, 'float32'),
        ('auto', True, 'bfloat16'),
        ('auto', False, 'float32'),
    ],
)
def test_dtype_on_the_cpu(monkeypatch, said, asked, native, chosen):
    monkeypatch.setattr('mmseg_m2f.adapters.training.amp.has_bfloat16', lambda: native)
    model, wrapper = build(dtype=asked)
    check_training(model, wrapper, getattr(torch, chosen))
    assert wrapper.loss_scaler is None
    # The choice is logged once, with a hint if it is not what was asked for.
    [line] = [line for line in said if 'AmpOptimWrapper' in line]
    assert line.startswith(f'AmpOptimWrapper: {chosen} on cpu')
    assert ('float16 needs an accelerator' in line) == (asked in (None, 'float16'))


def test_cpu_steps_equal_the_plain_wrapper():
    options = {'accumulative_counts': 2, 'clip_grad': {'max_norm': 0.01}}
    ours, wrapper = build(**options)
    plain = copy.deepcopy(ours)
    reference = OptimWrapper(torch.optim.SGD(plain.parameters(), 0.1), **options)
    for seed in range(4):
        update(wrapper, ours, seed)
        update(reference, plain, seed)
    assert torch.equal(ours.weight, plain.weight)


def test_wrong_settings_say_what_is_allowed():
    for dtype in ('fp16', 'float64', torch.int8):
        with pytest.raises(ValueError, match=r"dtype must be None, 'auto', .*bfloat16"):
            build(dtype=dtype)
    for scale in ('static', -1.0, None):
        with pytest.raises(ValueError, match="'dynamic', a positive number or a dict"):
            build(loss_scale=scale)


@pytest.fixture
def scaled(monkeypatch):
    """Let the scaled path run on a CPU, where torch's scaler works as well."""
    monkeypatch.setattr(AmpOptimWrapper, 'cast_dtype', torch.float16)


@pytest.mark.usefixtures('scaled')
def test_scaled_gradients_are_true_before_clipping(monkeypatch):
    model, wrapper = build(loss_scale=512.0, clip_grad={'max_norm': 1e6})
    norms = []
    monkeypatch.setattr(
        wrapper, 'clip_func', lambda params, **_: norms.extend(p.grad.norm() for p in params)
    )
    before = model.weight.detach().clone()
    wrapper.backward(wrapper.scale_loss(model(torch.ones(1, 4)).sum()))
    scaled = model.weight.grad.norm()
    wrapper.step()
    # The gradients of the sum are ones: 2 x 4 for the weight, 2 for the bias.
    assert norms == pytest.approx([8**0.5, 2**0.5], rel=1e-3)
    assert scaled == pytest.approx(512 * 8**0.5, rel=1e-3)
    torch.testing.assert_close(model.weight, before - 0.1)
    # A fixed scale stays.
    assert wrapper.loss_scaler.get_scale() == 512.0


@pytest.mark.usefixtures('scaled')
def test_overflow_skips_the_step_and_lowers_the_scale():
    model, wrapper = build(loss_scale={'init_scale': 1024.0}, clip_grad={'max_norm': 0.01})
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.ones(1, 4)).sum() * float('inf'))
    assert torch.equal(model.weight, before)
    assert wrapper.loss_scaler.get_scale() == 512.0


def test_a_saved_scale_is_resumed_where_gradients_are_scaled(monkeypatch):
    _, wrapper = build()
    plain = wrapper.state_dict()
    with_scale = {**plain, 'loss_scaler': torch.amp.GradScaler('cpu', 8.0).state_dict()}
    wrapper.load_state_dict(with_scale)
    assert 'loss_scaler' not in wrapper.state_dict()
    monkeypatch.setattr(AmpOptimWrapper, 'cast_dtype', torch.float16)
    for state, scale in ((plain, 2.0), (with_scale, 8.0)):
        _, wrapper = build(loss_scale={'init_scale': 2.0})
        wrapper.load_state_dict(state)
        assert wrapper.state_dict()['loss_scaler']['scale'] == scale


@pytest.mark.usefixtures('scaled')
@pytest.mark.parametrize(('saved', 'asked'), [(None, True), (True, None), (True, False)])
def test_a_resumed_optimizer_is_fused_as_it_was_built(saved, asked):
    (model, first), (resumed, second) = (
        build(optimizer={'type': 'AdamW', 'fused': fused}) for fused in (saved, asked)
    )
    update(first, model)
    state = copy.deepcopy(first.state_dict())  # else both would work on the same moments
    second.load_state_dict(state)
    resumed.load_state_dict(model.state_dict())
    assert second.optimizer.param_groups[0]['fused'] is asked
    assert state['param_groups'][0]['fused'] is saved
    update(first, model, seed=1)
    update(second, resumed, seed=1)
    torch.testing.assert_close(resumed.weight, model.weight)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
def test_on_a_gpu(dtype):
    model, on_gpu = build('cuda', dtype=dtype, clip_grad={'max_norm': 1.0})
    check_training(model, on_gpu, torch.bfloat16 if dtype == 'bfloat16' else torch.float16)
    assert (on_gpu.loss_scaler is None) == (dtype == 'bfloat16')
    _, on_cpu = build()
    on_cpu.load_state_dict(on_gpu.state_dict())
    build('cuda')[1].load_state_dict(on_cpu.state_dict())
