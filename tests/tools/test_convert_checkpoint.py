"""tools/convert_checkpoint.py, and the other tools on the files of other projects."""

import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.tools.conftest import TOOLS, Trained, run, run_tool

TOOL = 'convert_checkpoint.py'


@pytest.fixture(scope='module')
def official(trained: Trained) -> Path:
    """The trained row as the official code would have saved it."""
    target = trained.folder / 'official' / 'model_final.pkl'
    arguments = ('--config', trained.config, '--to', 'detectron2', '--min-matched', '1')
    output = run_tool(TOOL, trained.checkpoint, target, *arguments, cwd=trained.folder)
    number = len(torch.load(trained.checkpoint, weights_only=False)['state_dict'])
    assert re.search(r'all tensors matched: backbone \d+, pixel_decoder \d+', output)
    lines = output.splitlines()
    assert lines[0] == f'reading {trained.checkpoint}'
    closing = re.fullmatch(rf'{target}: (\d+) tensors, mmseg_m2f to detectron2', lines[-1])
    # All but the counters of the batch norms.
    assert number / 2 < int(closing.group(1)) < number
    return target


def metrics(output: str) -> dict[str, str]:
    found = dict(re.findall(r'(aAcc|mIoU|mAcc): ([\d.]+)', output))
    assert len(found) == 3, output
    return found


def test_test_takes_a_foreign_checkpoint_and_says_so(official: Path, trained: Trained) -> None:
    own, foreign = (
        run_tool('test.py', trained.config, file, cwd=trained.folder)
        for file in (trained.checkpoint, official)
    )
    assert 'the checkpoint has the layout of the official code (Detectron2)' in foreign
    assert 'the checkpoint has the layout' not in own
    assert all('loading the checkpoint: all tensors matched' in text for text in (own, foreign))
    assert metrics(own) == metrics(foreign)


def test_training_starts_from_a_folder_of_huggingface(
    official: Path, trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / 'hf'
    run_tool(TOOL, official, folder / 'model.safetensors', '--to', 'hf', cwd=trained.folder)
    (folder / 'config.json').write_text('{}')
    options = [f'load_from={folder}', 'train_cfg.max_iters=1', 'model.decode_head.num_queries=12']
    arguments = ('--work-dir', tmp_path / 'run', '--cfg-options', *options)
    output = run_tool('train.py', trained.config, *arguments, cwd=trained.folder)
    assert 'the checkpoint has the layout of Hugging Face' in output
    assert 'the checkpoint has 8 queries, the model 12: noisy copies fill up' in output
    assert (tmp_path / 'run' / 'iter_1.pth').is_file()


class Hostile:
    """Unpickling it calls ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize('tool', [TOOL, 'test.py'])
def test_a_hostile_pickle_gets_one_message(tool: str, trained: Trained, tmp_path: Path) -> None:
    marker, file, target = tmp_path / 'run', tmp_path / 'hostile.pkl', tmp_path / 'new' / 'out.pth'
    file.write_bytes(pickle.dumps({'model': {'w': Hostile(marker)}, '__author__': 'x'}))
    arguments = [file, target] if tool == TOOL else [trained.config, file]
    done = run(sys.executable, TOOLS / tool, *arguments, cwd=trained.folder)
    assert done.returncode == 1
    message = done.stdout.splitlines()[-1]
    assert message.startswith('UnsafeCheckpointError: ')
    assert 'hostile.pkl was refused and nothing of it was run' in message
    assert 'Traceback' not in done.stdout
    assert not marker.exists()
    assert not target.parent.exists()


def test_a_mistake_gets_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / 'w.pth'
    torch.save({'state_dict': {'conv_seg.weight': torch.ones(1)}}, file)
    for arguments, code, message in (
        (['none.pkl', 'out.pth'], 2, 'checkpoint not found: none.pkl'),
        ([file, 'out.pth', '--min-matched', '95'], 2, 'must be between 0 and 1, got 95'),
        ([file, 'out.pth', '--to', 'hf'], 1, 'files of hf end in .safetensors'),
        ([file, 'out.pth'], 1, 'cannot be converted: these 1 names are of no Mask2Former'),
    ):
        done = run(sys.executable, TOOLS / TOOL, *arguments, cwd=tmp_path)
        assert done.returncode == code
        assert message in done.stdout.splitlines()[-1]
        assert 'Traceback' not in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_layouts_of_the_command_are_those_of_the_package() -> None:
    from mmseg_m2f import checkpoints

    text = (TOOLS / TOOL).read_text()
    assert f'LAYOUTS = {checkpoints.LAYOUTS!r}' in text
    assert f'BACKBONE_LAYOUTS = {checkpoints.BACKBONE_LAYOUTS!r}' in text
