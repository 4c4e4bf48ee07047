"""Fixtures of the parts with faster forwards."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from mmseg_m2f.cpu import head, onednn, resnet, speed_up
from tests.ops.conftest import shorter_registers

__all__ = ['shorter_registers']


@pytest.fixture
def fast_calls(monkeypatch):
    """The names of the faster functions that were called."""
    calls = []

    def note(module, name):
        function = getattr(module, name)

        def noting(*args, **options):
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(module, name, noting)

    note(onednn, 'linear')
    note(onednn, 'linear_gelu')
    note(head, 'convolve')
    note(resnet, 'convolve')
    return calls


@pytest.fixture
def check_that_the_class_computes(fast_calls):
    """Change a part and its faster copy; both must give the same bits, with or without autocast."""

    @torch.no_grad()
    def check(part, inputs, change=lambda part: None, *, autocast=False):
        fast = speed_up(copy.deepcopy(part))
        change(part)
        change(fast)
        dtype = next(part.parameters()).dtype
        inputs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(dtype), inputs)
        results = []
        for one in (part, fast):
            torch.manual_seed(0)
            with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                results.append(pytree.tree_leaves(one(*inputs)))
        assert all(map(torch.equal, *results))
        assert not fast_calls

    return check


def double(part):
    part.double()


def hook_every_layer(part):
    for module in part.modules():
        if module is not part and not list(module.children()):
            module.register_forward_hook(lambda *_: None)
