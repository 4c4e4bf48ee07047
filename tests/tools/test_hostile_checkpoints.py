"""A pickle that would write a file is refused by every command that reads checkpoints."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.tools.conftest import TOOLS, Trained, run


class WritesAFile:
    """Unpickling it calls ``os.system``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


def stock_tool(name: str) -> Path:
    import mmseg

    return Path(mmseg.__file__).parent / '.mim/tools' / name


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """The file, and the one it would write."""
    file, written = tmp_path / 'hostile.pth', tmp_path / 'written'
    torch.save({'state_dict': WritesAFile(written), 'meta': {}}, file)
    return file, written


@pytest.mark.parametrize('command', ['test', 'resume', 'mmseg test'])
def test_refused_and_nothing_written(command, hostile, trained: Trained, tmp_path):
    file, written = hostile
    arguments = {
        'test': [TOOLS / 'test.py', trained.config, file],
        'resume': [TOOLS / 'train.py', trained.config, '--resume', file],
        'mmseg test': [stock_tool('test.py'), trained.config, file],
    }[command]
    done = run(sys.executable, *arguments, '--work-dir', tmp_path, cwd=trained.folder)
    assert done.returncode != 0
    assert 'UnsafeCheckpointError' in done.stdout
    assert 'posix.system' in done.stdout
    assert not written.exists()
