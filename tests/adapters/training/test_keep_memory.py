"""The hook that lets glibc keep freed memory."""

import logging
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmseg_m2f.adapters.training import keep_memory
from mmseg_m2f.registry import HOOKS

RESIDENT_AFTER_FREEING = """
import re
from pathlib import Path
from types import SimpleNamespace
import torch
import mmseg_m2f.adapters
from mmseg_m2f.registry import HOOKS

def resident_kib():
    tensor = torch.ones(64, 2**20)
    del tensor
    return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1))

without = resident_kib()
HOOKS.build({'type': 'mmseg_m2f.KeepMemoryHook'}).before_run(SimpleNamespace())
print(resident_kib() - without)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc' or not Path('/proc/self/status').exists(),
    reason='needs glibc and /proc',
)
def test_a_freed_tensor_stays_in_the_process():
    """The tensor has 256 MiB; half of it tells whether it stayed."""
    command = [sys.executable, '-W', 'ignore', '-c', RESIDENT_AFTER_FREEING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) / 1024 > 128


def test_without_glibc_the_log_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(keep_memory.platform, 'libc_ver', lambda: ('musl', '1.2'))
    monkeypatch.setattr(keep_memory, 'print_log', lambda *args, **how: said.append((args, how)))
    HOOKS.build({'type': 'mmseg_m2f.KeepMemoryHook'}).before_run(SimpleNamespace())
    [((text,), how)] = said
    assert 'it needs glibc' in text
    assert how == {'logger': 'current', 'level': logging.WARNING}
