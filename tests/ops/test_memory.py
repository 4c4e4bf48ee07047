"""Freed memory that a process keeps: pages are counted, and what lies in them is read again."""

import platform
import subprocess
import sys

import pytest

from mmseg_m2f.ops import memory

on_linux = pytest.mark.skipif(platform.system() != 'Linux', reason='pages are moved on Linux alone')
with_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc'
)

TOOLS = """
import os, random, resource, sys, threading, torch
from mmseg_m2f.ops.memory import LIBRARY, keep_freed_memory, keep_heap
for how in sys.argv[1:]:
    assert {'keep': keep_freed_memory, 'heap': keep_heap}[how]()
MIB = 2**18  # float32
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def waiting():
    return LIBRARY.loaded().waiting() / 2**20
def holds(tensor, value):  # without another tensor of its size
    return tensor.min() == tensor.max() == value
"""


def run(script: str, *how: str, **settings) -> str:
    """What the script prints in a process of its own."""
    command = [sys.executable, '-c', TOOLS + script, *how]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


AGAIN = """
torch.ones(128 * MIB)  # so that 64 MiB find room there whatever small things lie at its ends
before = faults()
torch.ones(64 * MIB)
print(faults() - before)
"""


@with_glibc
def test_memory_that_was_freed_comes_back_without_the_system():
    assert int(run(AGAIN, 'keep')) < 100
    assert int(run(AGAIN, 'heap')) < 100
    # Otherwise all of it comes anew, whatever the size of a page.
    assert int(run(AGAIN)) >= 64 * 2**20 / (2 * 2**20)


HOLES = """
small = [torch.ones(4 * MIB) for _ in range(32)]
small = small[::2]
before = faults()
large = torch.full((64 * MIB,), 3.0)
print(faults() - before, bool(holds(large, 3)), all(holds(x, 1) for x in small))
"""


@on_linux
def test_holes_are_put_together():
    pages, filled, kept = run(HOLES, 'keep').split()
    assert int(pages) < 100
    assert (filled, kept) == ('True', 'True')


SIZES = """
draw = random.Random(0)
tensors, largest = {}, 0
def held():
    return sum(-(-x.nbytes // 2**16) * 2**16 for x in tensors.values()) / 2**20
for number in range(3000):
    if tensors and draw.random() < (0.7 if held() > 96 else 0.4):
        key = draw.choice(list(tensors))
        assert holds(tensors.pop(key), key), f'tensor {key} was overwritten'
    else:
        size = int(MIB * draw.choice([1, 1.3, 2, 5, 11.7, 24]) * draw.uniform(1, 2))
        tensors[number] = torch.full((size,), float(number))
    largest = max(largest, held())
    assert abs(held() + waiting() - largest) < 1e-6, (held(), waiting(), largest)
tensors.clear()
assert waiting() == largest > 96
before = faults()
torch.ones(int(largest * MIB))
assert faults() - before < 100 and waiting() == largest
maps = sum(1 for _ in open('/proc/self/maps'))
assert maps < 5000, maps
"""


@on_linux
def test_tensors_of_all_sizes_are_left_alone_and_no_more_is_held_than_at_their_peak():
    run(SIZES, 'keep')


THREADS = """
def work(seed):
    draw = random.Random(seed)
    for number in range(200):
        mine = [torch.full((draw.randrange(MIB, 4 * MIB),), float(i)) for i in range(3)]
        assert all(holds(x, i) for i, x in enumerate(mine))
    finished.append(seed)
finished = []
torch.set_num_threads(1)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for number in range(20):  # while others hold the lock
    kept = torch.full((2 * MIB,), float(number))
    child = os.fork()
    if child == 0:
        nothing = waiting() == 0
        torch.full((4 * MIB,), -1.0)
        os._exit(0 if nothing and holds(kept, number) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert holds(kept, number)
for thread in threads:
    thread.join()
assert sorted(finished) == [0, 1, 2, 3]
"""


@on_linux
def test_threads_and_forks_do_not_meet():
    run(THREADS, 'keep', timeout=120)


BEFORE = """
import io
old, little = torch.full((4 * MIB,), 5.0), torch.ones(10)
assert keep_freed_memory() and keep_freed_memory()
assert holds(old, 5)
del old, little  # by the allocator they came from
assert waiting() == 0
torch.ones(100)
assert waiting() == 0
x = torch.full((MIB,), 2.0)
x.resize_(3 * MIB)
assert holds(x[:MIB], 2) and waiting() == 1
array = x.numpy()
del x
assert waiting() == 1 and array[0] == 2
del array
assert waiting() == 4
file = io.BytesIO()
torch.save(torch.arange(2 * MIB), file)
file.seek(0)
assert torch.equal(torch.load(file), torch.arange(2 * MIB))
shared = torch.full((2 * MIB,), 4.0).share_memory_()
assert holds(shared, 4)
with torch.profiler.profile(profile_memory=True) as profile:
    torch.ones(2 * MIB)
[event] = [e for e in profile.key_averages() if e.key == 'aten::empty']
assert event.cpu_memory_usage == 2 * 2**20, event
copy = torch._lazy_clone(y := torch.ones(2 * MIB))
y += 1
assert holds(copy, 1) and holds(y, 2)
"""


@on_linux
def test_other_memory_and_other_ways_to_use_it_stay():
    run(BEFORE)


LIMITED = """
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
torch.ones(MIB)
try:
    torch.ones(2**40)
except RuntimeError as error:
    assert "can't allocate memory" in str(error), error
    print('said')
torch.ones(MIB)
"""


@on_linux
def test_too_much_is_said_as_ever():
    assert run(LIMITED, 'keep') == 'said\n'


WITHOUT = """
import logging
logging.basicConfig(level=logging.WARNING)
assert keep_freed_memory() and keep_freed_memory()
"""


@with_glibc
def test_without_a_compiler_glibc_keeps_its_heap(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    assert int(run(WITHOUT + AGAIN)) < 100
    done = subprocess.run(
        [sys.executable, '-c', TOOLS + WITHOUT], capture_output=True, text=True, check=True
    )
    assert done.stderr.count('memory: no compiled CPU code') == 1


def test_another_system_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(platform, 'system', lambda: 'Darwin')
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert memory.keep_freed_memory() is False
    assert memory.keep_heap() is False
