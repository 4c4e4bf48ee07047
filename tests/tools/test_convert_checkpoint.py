"""tools/convert_checkpoint.py, and the other tools on the files of other projects."""

import pickle
import re
import runpy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from mmseg_m2f.adapters.checkpoints.convert_on_load import LAYOUT_NAMES
from mmseg_m2f.adapters.checkpoints.errors import UnsafeCheckpointError
from tests.adapters.checkpoints.hostile import touch
from tests.tools.conftest import ROOT, TOOLS, Trained, foreign_file, metrics, run_tool

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


@pytest.fixture
def convert(call: Callable[..., str]) -> Callable[..., str]:
    return partial(call, TOOLS / TOOL)


@pytest.mark.parametrize('tool', ['ours', "mmseg's"])
def test_test_takes_a_foreign_checkpoint_and_says_so(
    official: Path, trained: Trained, tool: str, call_runner: Callable[..., str], tmp_path: Path
) -> None:
    """The metrics are those of the training's validation, on the same images."""
    import mmseg

    script = (TOOLS if tool == 'ours' else Path(mmseg.__file__).parent / '.mim/tools') / 'test.py'
    output = call_runner(script, trained.config, official, '--work-dir', tmp_path)
    assert 'the checkpoint has the layout of the official code (Detectron2)' in output
    assert 'loading the checkpoint: all tensors matched' in output
    assert metrics(output) == metrics(trained.output)


def test_training_starts_from_a_folder_of_huggingface(
    official: Path,
    trained: Trained,
    convert: Callable[..., str],
    call_runner: Callable[..., str],
    tmp_path: Path,
) -> None:
    folder = tmp_path / 'hf'
    convert(official, folder / 'model.safetensors', '--to', 'hf')
    (folder / 'config.json').write_text('{}')
    options = [f'load_from={folder}', 'train_cfg.max_iters=1', 'model.decode_head.num_queries=12']
    arguments = (trained.config, '--work-dir', tmp_path / 'run')
    output = call_runner(TOOLS / 'train.py', *arguments, settings=options)
    assert 'the checkpoint has the layout of Hugging Face' in output
    assert 'the checkpoint has 8 queries, the model 12: noisy copies fill up the rest' in output
    assert (tmp_path / 'run' / 'iter_1.pth').is_file()


@pytest.mark.parametrize('layout', ['detectron2', 'mmdet'])
def test_mmdets_test_takes_a_foreign_checkpoint(
    call_runner: Callable[..., str], trained_panoptic: Trained, layout: str, tmp_path: Path
) -> None:
    mmdet = pytest.importorskip('mmdet')
    script = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    file = foreign_file(trained_panoptic, layout)
    output = call_runner(script, trained_panoptic.config, file, '--work-dir', tmp_path)
    assert f'layout of {LAYOUT_NAMES[layout]}: converted for panoptic_head' in output
    assert 'loading the checkpoint: all tensors matched' in output
    assert metrics(output) == metrics(trained_panoptic.output)


def test_a_foreign_checkpoint_is_no_run_to_resume(
    call_runner: Callable[..., str], official: Path, trained: Trained, tmp_path: Path
) -> None:
    options = ['--work-dir', tmp_path, '--resume', official]
    with pytest.raises(SystemExit) as stop:
        call_runner(TOOLS / 'train.py', trained.config, *options)
    message = str(stop.value)
    assert message.startswith(f'CheckpointError: {official} cannot be resumed')
    assert 'no optimizer state' in message
    assert f'load_from={official}' in message


@pytest.mark.parametrize('suffix', ['.pth', '.pkl'])
@pytest.mark.parametrize('tool', ['test.py', 'train.py', TOOL])
def test_our_tools_refuse_a_hostile_file_in_one_message(
    call: Callable[..., str],
    call_runner: Callable[..., str],
    row: Path,
    tmp_path: Path,
    tool: str,
    suffix: str,
) -> None:
    file, marker, target = tmp_path / f'hostile{suffix}', tmp_path / 'run', tmp_path / 'new/out.pth'
    hostile(file, marker)
    run_here = call if tool == TOOL else call_runner
    arguments = {
        'test.py': [row, file, '--work-dir', tmp_path],
        'train.py': [row, '--resume', file, '--work-dir', tmp_path],
        TOOL: [file, target],
    }[tool]
    with pytest.raises(SystemExit) as stop:
        run_here(TOOLS / tool, *arguments)
    message = str(stop.value)
    assert message.startswith(
        f'UnsafeCheckpointError: {file} was refused and nothing of it was run'
    )
    assert 'the name posix.system' in message
    assert not marker.exists()
    assert not target.parent.exists()


def test_mmsegs_test_refuses_a_hostile_file(
    call_runner: Callable[..., str], row: Path, tmp_path: Path
) -> None:
    import mmseg

    file, marker = tmp_path / 'hostile.pth', tmp_path / 'run'
    hostile(file, marker)
    script = Path(mmseg.__file__).parent / '.mim/tools/test.py'
    with pytest.raises(UnsafeCheckpointError):
        call_runner(script, row, file, '--work-dir', tmp_path)
    assert not marker.exists()


def hostile(file: Path, marker: Path) -> None:
    """Write a checkpoint that makes ``marker`` when Python unpickles it."""
    if file.suffix == '.pkl':
        file.write_bytes(pickle.dumps({'model': {'w': touch(marker)}, '__author__': 'x'}))
    else:
        torch.save({'state_dict': touch(marker), 'meta': {}}, file)


def test_a_mistake_gets_one_sentence(
    convert: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, target = tmp_path / 'w.pth', tmp_path / 'out.pth'
    torch.save({'state_dict': {'conv_seg.weight': torch.ones(1)}}, file)
    for arguments, message in (
        (['none.pkl', target], 'checkpoint not found: none.pkl'),
        ([file, target, '--config', 'none.py'], 'config not found: none.py'),
        ([file, target, '--min-matched', '95'], 'must be between 0 and 1, got 95'),
        ([file, target, '--to', 'hf'], 'files of hf end in .safetensors'),
        ([file, target], 'cannot be converted: these 1 names are of no Mask2Former'),
    ):
        with pytest.raises(SystemExit) as stop:
            convert(*arguments)
        said = capfd.readouterr().err + str(stop.value.code)
        assert message in said
        assert [path.name for path in tmp_path.iterdir()] == [file.name]


def documented(tool: str) -> list[list[str]]:
    """The arguments of every call of ``tool`` in the documentation."""
    text = (ROOT / 'docs/checkpoints.md').read_text()
    return [line.split() for line in re.findall(rf'^python tools/{tool} (.*)', text, re.MULTILINE)]


def test_documented_conversions(
    convert: Callable[..., str],
    official: Path,
    trained: Trained,
    panoptic_row: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmengine import Config
    from mmengine.registry import MODELS

    from mmseg_m2f.checkpoints import to_theirs

    monkeypatch.chdir(tmp_path)
    shutil.copy(official, 'model_final.pkl')
    state = torch.load(trained.checkpoint, weights_only=False)['state_dict']
    prefix = 'backbone.'
    resnet = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    torch.save(resnet, 'resnet50.pth')
    cfg = Config.fromfile(panoptic_row)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        panoptic = to_theirs(MODELS.build(cfg.model).state_dict(), 'detectron2')
    arrays = {key: value.numpy() for key, value in panoptic.items()}
    Path('panoptic.pkl').write_bytes(pickle.dumps({'model': arrays, '__author__': 'x'}))
    stands_for = {
        'configs/mask2former_r50_ade20k.py': trained.config,
        'configs/mask2former_r50_ade20k-panoptic.py': panoptic_row,
    }
    calls = documented(TOOL)
    assert len(calls) == 8
    for arguments in calls:
        convert(*(stands_for.get(argument, argument) for argument in arguments))
        assert Path(arguments[1]).is_file()
    ours = torch.load('ours.pth', weights_only=True)['state_dict']
    backbone = torch.load('backbone.pth', weights_only=True)['state_dict']
    assert ours.keys() == state.keys()
    assert backbone.keys() == {key for key in state if key.startswith(prefix)}
    for key in backbone.keys() - {key for key in state if 'num_batches' in key}:
        assert torch.equal(backbone[key], state[key])
        assert torch.equal(ours[key], state[key])


def test_documented_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    for tool in ('train', 'test'):
        module = runpy.run_path(str(TOOLS / f'{tool}.py'))
        for arguments in documented(f'{tool}.py'):
            parsed = module[f'create_{tool}_parser']().parse_args(
                [*arguments, '--min-matched', '0.8']
            )
            assert (ROOT / parsed.config).is_file()
            assert parsed.min_matched == 0.8


def test_layouts_of_the_command_are_those_of_the_package() -> None:
    from mmseg_m2f import checkpoints

    text = (TOOLS / TOOL).read_text()
    assert f'LAYOUTS = {checkpoints.LAYOUTS!r}' in text
    assert f'BACKBONE_LAYOUTS = {checkpoints.BACKBONE_LAYOUTS!r}' in text
