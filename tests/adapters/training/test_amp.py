"""Mixed precision: float32 on a CPU unless told otherwise, scaled float16 on an accelerator."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmseg_m2f.adapters.training.amp import AmpOptimWrapper


def build(
    model: nn.Module, lr: float = 0.1, adamw: dict | None = None, **options: object
) -> AmpOptimWrapper:
    """Build a wrapper with SGD, or with AdamW and these arguments."""
    optimizer = {'type': 'SGD' if adamw is None else 'AdamW', 'lr': lr, **(adamw or {})}
    return build_optim_wrapper(
        model, {'type': 'mmseg_m2f.AmpOptimWrapper', 'optimizer': optimizer, **options}
    )


def linear(device: str = 'cpu') -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2).to(device)


def update(wrapper: OptimWrapper, model: nn.Module, seed: int = 0) -> torch.Tensor:
    """One training step; returns the model's output."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 4, generator=generator).to(model.weight.device)
    with wrapper.optim_context(model):
        outputs = model(inputs)
    wrapper.update_params(outputs.float().square().mean())
    return outputs


@pytest.mark.parametrize(
    ('asked', 'native', 'expected'),
    [
        (None, True, torch.float32),
        ('float16', True, torch.float32),
        (torch.float16, True, torch.float32),
        ('bfloat16', False, torch.bfloat16),
        ('float32', True, torch.float32),
        ('auto', True, torch.bfloat16),
        ('auto', False, torch.float32),
    ],
)
def test_dtype_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    asked: object,
    native: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr('mmseg_m2f.adapters.training.amp.has_bfloat16', lambda: native)
    model = linear()
    wrapper = build(model, dtype=asked)
    outputs = [update(wrapper, model) for _ in range(20)]
    assert {output.dtype for output in outputs} == {expected}
    first, *_, last = (output.float().square().mean() for output in outputs)
    assert last < 0.7 * first
    assert wrapper.loss_scaler is None
    assert model.weight.dtype == torch.float32
    # The choice is logged once, with a hint if it is not what was asked for.
    [line] = [line for line in said if 'AmpOptimWrapper' in line]
    assert line.startswith(f'AmpOptimWrapper: {str(expected).removeprefix("torch.")} on cpu')
    assert ('float16 needs an accelerator' in line) == (asked in (None, 'float16', torch.float16))


def test_cpu_steps_equal_the_plain_wrapper() -> None:
    options = {'accumulative_counts': 2, 'clip_grad': {'max_norm': 0.01}}
    ours, plain = linear(), linear()
    wrapper = build(ours, **options)
    reference = OptimWrapper(torch.optim.SGD(plain.parameters(), 0.1), **options)
    for seed in range(4):
        update(wrapper, ours, seed)
        update(reference, plain, seed)
    assert torch.equal(ours.weight, plain.weight)
    assert not torch.equal(ours.weight, linear().weight)


def test_state_of_other_wrappers_loads() -> None:
    model = linear()
    wrapper = build(model)
    state = wrapper.state_dict()
    assert 'loss_scaler' not in state
    # A run on a GPU saves this.
    with_scale = {**state, 'loss_scaler': {'scale': 1024.0, 'growth_factor': 2.0}}
    kept = dict(with_scale)
    wrapper.load_state_dict(with_scale)
    assert with_scale == kept
    update(wrapper, model)


@pytest.mark.parametrize(
    ('key', 'wrong', 'message'),
    [
        ('dtype', ['fp16', 'float64', torch.int8], r"None, 'auto' or one of .*bfloat16"),
        ('loss_scale', ['static', -1.0, None], "'dynamic', a positive number or a dict"),
    ],
)
def test_wrong_settings_say_what_is_allowed(key: str, wrong: list, message: str) -> None:
    for value in wrong:
        with pytest.raises(ValueError, match=f'{key} must be {message}'):
            build(linear(), **{key: value})


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scaled path run on a CPU, where torch's scaler works as well."""
    monkeypatch.setattr('mmseg_m2f.adapters.training.amp._dtype_on', lambda *_: torch.float16)


@pytest.mark.usefixtures('scaled')
def test_scaled_gradients_are_true_before_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    wrapper = build(model, loss_scale=512.0, clip_grad={'max_norm': 1e6})
    norms = []
    monkeypatch.setattr(
        wrapper,
        'clip_func',
        lambda params, **_: norms.append(torch.stack([p.grad.norm() for p in params]).norm()),
    )
    before = model.weight.detach().clone()
    wrapper.backward(wrapper.scale_loss(model(torch.ones(1, 4)).sum()))
    scaled = model.weight.grad.norm()
    wrapper.step()
    # d(sum)/dW is all ones (2x4), d/db ones (2): norm sqrt(10).
    assert norms[0] == pytest.approx(10**0.5, rel=1e-3)
    assert scaled == pytest.approx(512 * 8**0.5, rel=1e-3)
    torch.testing.assert_close(model.weight, before - 0.1)
    # A fixed scale stays.
    assert wrapper.loss_scaler.get_scale() == 512.0


@pytest.mark.usefixtures('scaled')
def test_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model = linear()
    wrapper = build(model, loss_scale={'init_scale': 1024.0}, clip_grad={'max_norm': 0.01})
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.ones(1, 4)).sum() * float('inf'))
    assert torch.equal(model.weight, before)
    assert wrapper.loss_scaler.get_scale() == 512.0


@pytest.mark.usefixtures('scaled')
def test_the_scale_is_resumed() -> None:
    first, second, third = (build(linear(), loss_scale={'init_scale': s}) for s in (8.0, 2.0, 2.0))
    first.backward(torch.ones(1, requires_grad=True).sum())
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.loss_scaler.get_scale() == 8.0
    # From a run without a scaler: goes on with its own.
    state.pop('loss_scaler')
    third.load_state_dict(state)
    assert third.loss_scaler.get_scale() == 2.0


@pytest.mark.usefixtures('scaled')
@pytest.mark.parametrize(('saved', 'asked'), [(None, True), (True, None), (True, False)])
def test_a_resumed_optimizer_is_fused_as_it_was_built(
    saved: bool | None, asked: bool | None
) -> None:
    models = [linear(), linear()]
    first, second = (
        build(model, adamw={'fused': fused})
        for model, fused in zip(models, (saved, asked), strict=True)
    )
    update(first, models[0])
    state = copy.deepcopy(first.state_dict())  # else both would work on the same moments
    second.load_state_dict(state)
    models[1].load_state_dict(models[0].state_dict())
    assert second.optimizer.param_groups[0]['fused'] is asked
    assert state['param_groups'][0]['fused'] is saved
    for wrapper, model in zip((first, second), models, strict=True):
        update(wrapper, model, seed=1)
    torch.testing.assert_close(models[1].weight, models[0].weight)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
def test_on_a_gpu(dtype: str | None) -> None:
    model = linear('cuda')
    wrapper = build(model, dtype=dtype, clip_grad={'max_norm': 1.0})
    outputs = [update(wrapper, model) for _ in range(20)]
    assert outputs[0].dtype == (torch.bfloat16 if dtype == 'bfloat16' else torch.float16)
    assert (wrapper.loss_scaler is None) == (dtype == 'bfloat16')
    assert outputs[-1].float().square().mean() < 0.7 * outputs[0].float().square().mean()


@pytest.mark.cuda
def test_from_gpu_to_cpu_and_back() -> None:
    model = linear('cuda')
    on_gpu, on_cpu = build(model), build(linear())
    update(on_gpu, model)
    on_cpu.load_state_dict(on_gpu.state_dict())
    build(linear('cuda')).load_state_dict(on_cpu.state_dict())
