"""The hook that keeps a run's freed memory, on the devices and systems it is for."""

import logging
from types import SimpleNamespace

import pytest
from torch import nn

from mmseg_m2f.adapters.training import keep_memory
from mmseg_m2f.registry import HOOKS


@pytest.fixture
def asked(monkeypatch):
    asked = []
    monkeypatch.setattr(keep_memory, 'keep_freed_memory', lambda: asked.append('kept') or True)
    return asked


def before_run(model):
    HOOKS.build({'type': 'mmseg_m2f.KeepMemoryHook'}).before_run(SimpleNamespace(model=model))


def test_a_run_on_a_cpu_keeps_its_memory(asked):
    before_run(nn.Linear(2, 2))
    assert asked == ['kept']


@pytest.mark.parametrize('model', [nn.Linear(2, 2, device='meta'), nn.Identity()])
def test_a_run_elsewhere_or_without_weights_does_not(asked, model):
    before_run(model)
    assert asked == []


def test_where_it_cannot_be_done_the_log_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(keep_memory, 'keep_freed_memory', lambda: False)
    monkeypatch.setattr(keep_memory, 'print_log', lambda *args, **how: said.append((args, how)))
    before_run(nn.Linear(2, 2))
    [((text,), how)] = said
    assert text.startswith('Freed memory goes back to the system')
    assert how == {'logger': 'current', 'level': logging.WARNING}
