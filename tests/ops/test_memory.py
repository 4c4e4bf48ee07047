"""Freed memory that a process keeps: counted in pages that the system has to give."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from mmseg_m2f.ops.memory import keep_freed_memory
if sys.argv[1] == 'keep':
    assert keep_freed_memory()
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)  # gone at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2**25)  # 128 MiB, so that 64 find room there whatever small things lie at its ends
print(faults(2**24))
"""


def pages(how: str) -> int:
    done = subprocess.run(
        [sys.executable, '-c', COUNT, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_memory_that_was_freed_comes_back_without_the_system():
    assert pages('keep') < 100
    # Otherwise all of it comes anew, whatever the size of a page.
    assert pages('give back') >= 64 * 2**20 / (2 * 2**20)


def test_another_c_library_is_left_as_it_is(monkeypatch):
    from mmseg_m2f.ops import memory

    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert memory.keep_freed_memory() is False
