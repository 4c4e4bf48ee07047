"""Every command that reads checkpoints refuses a pickle that would write a file."""

import sys
from pathlib import Path

import mmseg
import pytest
import torch

from tests.adapters.checkpoints.hostile import touch
from tests.tools.conftest import TOOLS, Trained, run

STOCK_TOOLS = Path(mmseg.__file__).parent / '.mim/tools'
COMMANDS = {
    'test': (TOOLS / 'test.py',),
    'resume': (TOOLS / 'train.py', '--resume'),
    'mmseg test': (STOCK_TOOLS / 'test.py',),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_refused_and_nothing_written(command: str, trained: Trained, tmp_path: Path) -> None:
    file, marker = tmp_path / 'hostile.pth', tmp_path / 'run'
    torch.save({'state_dict': touch(marker), 'meta': {}}, file)
    tool, *options = COMMANDS[command]
    arguments = (tool, trained.config, *options, file, '--work-dir', tmp_path)
    done = run(sys.executable, *arguments, cwd=trained.folder)
    assert done.returncode != 0
    assert 'UnsafeCheckpointError' in done.stdout
    assert 'posix.system' in done.stdout
    # Our own tools say it in one line.
    assert ('Traceback' in done.stdout) == (command == 'mmseg test')
    assert not marker.exists()
