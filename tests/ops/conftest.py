"""A fixture that builds C++ code for processors with shorter registers than this one's."""

from pathlib import Path
from types import ModuleType

import pytest

from mmseg_m2f.ops import native

_FLAGS = {'avx512f': '-mno-avx512f', 'avx': '-mno-avx'}


def _instructions() -> list[str]:
    """Name the instruction sets of this processor that a compiler can be told to leave out."""
    description = Path('/proc/cpuinfo')
    known = set(description.read_text().split()) if description.exists() else set()
    return [name for name in _FLAGS if name in known]


@pytest.fixture(params=_instructions())
def shorter_registers(request, tmp_path, monkeypatch):
    """Build the library of a module without these instructions, for one test."""
    compiler = tmp_path / 'compiler'
    compiler.write_text(f'#!/bin/sh\nexec {native._compiler()} "$@" {_FLAGS[request.param]}\n')
    compiler.chmod(0o755)

    def build(module: ModuleType) -> None:
        library = native.Library(module.LIBRARY.name, module.__file__)
        with monkeypatch.context() as patch:
            patch.setenv('CXX', str(compiler))
            patch.setenv('XDG_CACHE_HOME', str(tmp_path))
            assert library.why_not() is None
        monkeypatch.setattr(module, 'LIBRARY', library)

    return build
