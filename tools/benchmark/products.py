"""How fast a step could be at most: its matrix products and convolutions by themselves.

    python -m tools.benchmark.products --threads 2 --csv docs/benchmarks/products_fp32_cpu.csv

Matrix products, convolutions and attention, on which a step spends its arithmetic, are noted in one
run of it, with the sizes and strides of what they were given. ``-products`` is these operators
again, one after the other on tensors that are there already, and nothing else: no norm, no
activation, no deformable attention, no post-processing, no optimiser. What is left of a step's time
is what better code could save; the stock peer's step over our products bounds how many times as
fast any code with these operators can be.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tools.benchmark import harness, inference, train_step

TRAINING = 'train-'
CASES = ('r50_512', 'panoptic_800x1333', 'swin-l_640', 'train-r50_512')
SMALL = ('r18_128', 'train-r18_64')
SUFFIX = '-products'
PRODUCTS = {
    'aten::convolution',
    'aten::convolution_backward',
    'aten::addmm',
    'aten::addmm_',
    'aten::mm',
    'aten::bmm',
    'aten::baddbmm',
    'aten::linear',
    'mkldnn::_linear_pointwise',
    'mmseg_m2f::convolve_3x3',
    'mmseg_m2f::convolve_3x3_backward_input',
    'mmseg_m2f::convolve_3x3_backward_weight',
    'aten::_scaled_dot_product_flash_attention_for_cpu',
    'aten::_scaled_dot_product_flash_attention_for_cpu_backward',
}
# What a call was given, of tensors without their values.
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.products',
            [*CASES, *SMALL],
            {case: implementations(case) for case in [*CASES, *SMALL]},
            prepare,
            disagreement,
            optional=SMALL,
        )
    )


def implementations(case: str) -> list[str]:
    """Ours and the stock peer, each whole and as its products."""
    peer = 'mmdet' if case.startswith('panoptic') else 'mmseg'
    return [f'ours{SUFFIX}', 'ours', f'{peer}{SUFFIX}', peer]


def prepare(case: str, implementation: str) -> harness.Step:
    """The step of a model, or the products in it."""
    whole = _prepare_whole(case, implementation.removesuffix(SUFFIX))
    return replay(noted_products(whole)) if implementation.endswith(SUFFIX) else whole


def _prepare_whole(case: str, implementation: str) -> harness.Step:
    if case.startswith(TRAINING):
        return train_step.prepare(case.removeprefix(TRAINING), implementation)
    return inference.prepare(case, implementation)


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Of the whole steps; products have no outputs of their own to compare."""
    whole = [name for name in names if not name.endswith(SUFFIX)]
    module: Any = train_step if case.startswith(TRAINING) else inference
    # It writes the weights that all share, whoever is compared.
    found = module.disagreement(case.removeprefix(TRAINING), whole)
    return {name: found.get(name, harness.Agreement(0.0, 0.0)) for name in names}


class _Noting(TorchDispatchMode):
    """Notes the calls of products, without the values of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note, then call."""
        kwargs = kwargs or {}
        if func.name().partition('.')[0] in PRODUCTS:
            self.calls.append((func, tree_map(_like, args), tree_map(_like, kwargs)))
        return func(*args, **kwargs)


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device='meta')


def noted_products(step: Callable[[], Any]) -> list[Call]:
    """In the order of one call of ``step``; its arguments are on the device ``meta``."""
    step()  # what is made once and kept is no part of a step
    with _Noting() as noting:
        step()
    return noting.calls


def replay(calls: Sequence[Call]) -> Callable[[], None]:
    """Does the noted calls on random tensors, the same for all of one form."""

    @functools.cache
    def tensor(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        length = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # Attention masks are open everywhere, which changes nothing in the arithmetic.
        memory = torch.randn(length).to(dtype) if dtype.is_floating_point else torch.ones(length)
        return memory.to(dtype).as_strided(size, stride)

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return tensor(tuple(value.shape), value.stride(), value.dtype)

    ready = [(func, tree_map(real, args), tree_map(real, kwargs)) for func, args, kwargs in calls]

    @torch.no_grad()
    def step() -> None:
        for func, args, kwargs in ready:
            func(*args, **kwargs)

    return step


if __name__ == '__main__':
    main()
