"""Sources compiled on first use: kept for the next process, and a clear reason where they can't."""

import logging
import re
import subprocess
import sys

import pytest

from mmseg_m2f.ops import native
from mmseg_m2f.ops.native import Library

SOURCE = 'extern "C" int answer() { return %d; }'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'mmseg_m2f'


def library(tmp_path, answer=42, text=SOURCE):
    source = tmp_path / '.any name' / 'answer.cpp'
    source.parent.mkdir(exist_ok=True)
    source.write_text(text % answer if '%d' in text else text)
    return Library('answer', str(source))


def test_a_source_is_compiled_once_and_kept(tmp_path, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger='mmseg_m2f')
    assert library(tmp_path).loaded().answer() == 42
    assert [path.suffix for path in cache.iterdir()] == ['.so']
    # The next process finds it: nothing is compiled, nothing is said.
    monkeypatch.setattr(Library, '_compile', None)
    assert library(tmp_path).loaded().answer() == 42
    said = [record.message for record in caplog.records]
    assert said == ['answer: compiling the CPU code (once, some seconds)']


def test_another_source_or_processor_is_compiled_anew(tmp_path, cache, monkeypatch):
    assert library(tmp_path, 1).loaded().answer() == 1
    assert library(tmp_path, 2).loaded().answer() == 2
    monkeypatch.setattr(native, '_processor', lambda: b'another')
    assert library(tmp_path, 2).loaded().answer() == 2
    assert len(list(cache.iterdir())) == 3


def test_where_it_cannot_be_compiled_the_reason_is_said_once(tmp_path, cache, monkeypatch, caplog):
    broken = library(tmp_path, text='extern "C" int answer() { return nothing; }')
    assert re.search('error.*nothing', broken.why_not(), re.DOTALL)
    assert list(cache.iterdir()) == []
    caplog.clear()
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    missing = library(tmp_path)
    for _ in range(2):
        assert 'no C++ compiler found: install g++ or clang++' in missing.why_not()
    assert len(caplog.records) == 1
    with pytest.raises(RuntimeError, match='answer: it could not be compiled'):
        missing.loaded()


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert 'writable by others' in library(tmp_path).why_not()


WITHOUT = """
import logging, os, torch
logging.basicConfig(format='%(message)s')
os.environ['PATH'] = ''
from mmseg_m2f.core import MSDeformAttnPixelDecoder
pixel_decoder = MSDeformAttnPixelDecoder([8, 8, 8, 8])
maps = [torch.randn(1, 8, 32 // 2**i, 32 // 2**i) for i in range(4)]
pixel_decoder(maps).mask_features.sum().backward()
with torch.no_grad():
    pixel_decoder(maps)
"""


def test_a_machine_without_a_compiler_trains_and_tests_all_the_same():
    done = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('ms_deform_attn: no compiled CPU code') == 1
