"""Freed memory that a process keeps: counted in pages that the system has to give."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from mmseg_m2f.ops.memory import keep_freed_memory, return_freed_memory
for how in sys.argv[1:]:
    assert {'keep': keep_freed_memory, 'return': return_freed_memory}[how]()
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)  # gone at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2**25)  # 128 MiB, so that 64 find room there whatever small things lie at its ends
print(faults(2**24))
"""


def pages(*how: str) -> int:
    done = subprocess.run(
        [sys.executable, '-c', COUNT, *how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_memory_that_was_freed_comes_back_without_the_system():
    assert pages('keep') < 100
    # Otherwise all of it comes anew, whatever the size of a page.
    assert pages() >= 64 * 2**20 / (2 * 2**20)


RESIDENT = """
def resident():
    [line] = [line for line in open('/proc/self/status') if line.startswith('VmRSS')]
    return int(line.split()[1]) / 1024
"""

HOLES = (
    RESIDENT
    + """
import sys, torch
from mmseg_m2f.ops.memory import return_freed_memory
if 'return' in sys.argv:
    assert return_freed_memory()
torch.ones(2**22)  # 16 MiB: from now on glibc takes what is smaller from its heap
before = resident()
kept, freed = [], []
for _ in range(16):
    freed.append(torch.ones(2**20))  # 4 MiB
    kept.append(torch.ones(2**14))  # 64 KiB, between two that will be freed
freed.clear()
print(resident() - before)
"""
)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_memory_is_returned_from_between_what_is_kept():
    def left(*how: str) -> float:
        command = [sys.executable, '-c', HOLES, *how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert left() > 60
    assert left('return') < 4


SWITCH = (
    RESIDENT
    + """
import torch
from mmseg_m2f.ops.memory import keep_freed_memory, return_freed_memory
assert keep_freed_memory()
before = resident()
torch.ones(2**24)  # 64 MiB, gone at once
print(resident() - before)
class Cycle:
    def __init__(self):
        self.me, self.tensor = self, torch.ones(2**24)
Cycle()
assert return_freed_memory()
print(resident() - before)
"""
)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_returning_undoes_keeping():
    assert pages('keep', 'return') >= 64 * 2**20 / (2 * 2**20)
    assert pages('return', 'keep') < 100
    command = [sys.executable, '-c', SWITCH]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, left = map(float, done.stdout.split())
    assert kept > 60
    assert left < 4


def test_another_c_library_is_left_as_it_is(monkeypatch):
    from mmseg_m2f.ops import memory

    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert memory.keep_freed_memory() is False
    assert memory.return_freed_memory() is False
