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
Call = Callable[..., str]


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
def convert(call: Call) -> Call:
    return partial(call, TOOLS / TOOL)


def stock_tool(package: str) -> Path:
    module = pytest.importorskip(package)
    return Path(module.__file__).parent / '.mim/tools/test.py'


@pytest.mark.parametrize(
    ('tool', 'fixture', 'layout'),
    [
        ('ours', 'trained', 'detectron2'),
        ('mmseg', 'trained', 'detectron2'),
        ('mmdet', 'trained_panoptic', 'mmdet'),
    ],
)
def test_a_test_takes_a_foreign_checkpoint_and_says_so(
    request: pytest.FixtureRequest,
    call_runner: Call,
    tmp_path: Path,
    tool: str,
    fixture: str,
    layout: str,
) -> None:
    """The metrics are those of the training's validation, on the same images."""
    trained = request.getfixturevalue(fixture)
    script = TOOLS / 'test.py' if tool == 'ours' else stock_tool(tool)
    file = foreign_file(trained, layout)
    output = call_runner(script, trained.config, file, '--work-dir', tmp_path)
    assert f'the checkpoint has the layout of {LAYOUT_NAMES[layout]}: converted' in output
    assert 'loading the checkpoint: all tensors matched' in output
    assert metrics(output) == metrics(trained.output)


def test_training_starts_from_a_foreign_file_and_resumes_none(
    official: Path, trained: Trained, convert: Call, call_runner: Call, tmp_path: Path
) -> None:
    """From a folder of Hugging Face, with more queries."""
    folder = tmp_path / 'hf'
    convert(official, folder / 'model.safetensors', '--to', 'hf')
    (folder / 'config.json').write_text('{}')
    options = [f'load_from={folder}', 'train_cfg.max_iters=1', 'model.decode_head.num_queries=12']
    arguments = (trained.config, '--work-dir', tmp_path / 'run')
    output = call_runner(TOOLS / 'train.py', *arguments, settings=options)
    assert 'the checkpoint has the layout of Hugging Face' in output
    assert 'the checkpoint has 8 queries, the model 12: noisy copies fill up the rest' in output
    assert (tmp_path / 'run' / 'iter_1.pth').is_file()
    with pytest.raises(SystemExit) as stop:
        call_runner(TOOLS / 'train.py', *arguments, '--resume', official)
    message = str(stop.value)
    assert message.startswith(f'CheckpointError: {official} cannot be resumed')
    assert 'no optimizer state' in message
    assert f'load_from={official}' in message


@pytest.mark.parametrize('suffix', ['.pth', '.pkl'])
@pytest.mark.parametrize('tool', ['test.py', 'train.py', TOOL, "mmseg's test.py"])
def test_a_hostile_file_is_refused_in_one_message(
    call: Call, call_runner: Call, row: Path, tmp_path: Path, tool: str, suffix: str
) -> None:
    file, marker, target = tmp_path / f'hostile{suffix}', tmp_path / 'run', tmp_path / 'new/out.pth'
    # Whoever unpickles it makes the marker.
    if suffix == '.pkl':
        file.write_bytes(pickle.dumps({'model': {'w': touch(marker)}, '__author__': 'x'}))
    else:
        torch.save({'state_dict': touch(marker), 'meta': {}}, file)
    script = stock_tool('mmseg') if 'mmseg' in tool else TOOLS / tool
    arguments = [file, target] if tool == TOOL else [row, '--work-dir', tmp_path]
    if tool != TOOL:
        arguments += ['--resume', file] if tool == 'train.py' else [file]
    run_here = call if tool == TOOL else call_runner
    with pytest.raises((SystemExit, UnsafeCheckpointError)) as stop:
        run_here(script, *arguments)
    message = str(stop.value)
    prefix = '' if stop.type is UnsafeCheckpointError else 'UnsafeCheckpointError: '
    assert message.startswith(f'{prefix}{file} was refused and nothing of it was run')
    assert 'the name posix.system' in message
    assert (stop.type is SystemExit) == ('mmseg' not in tool)
    assert not marker.exists()
    assert not target.parent.exists()


def test_a_mistake_gets_one_sentence(
    convert: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
    convert: Call,
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


def test_documented_options_and_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmseg_m2f import checkpoints

    monkeypatch.syspath_prepend(str(TOOLS))
    for tool in ('train', 'test'):
        parser = runpy.run_path(str(TOOLS / f'{tool}.py'))[f'create_{tool}_parser']()
        for arguments in documented(f'{tool}.py'):
            parsed = parser.parse_args([*arguments, '--min-matched', '0.8'])
            assert (ROOT / parsed.config).is_file()
            assert parsed.min_matched == 0.8
    module = runpy.run_path(str(TOOLS / TOOL))
    assert module['LAYOUTS'] == checkpoints.LAYOUTS
    assert module['BACKBONE_LAYOUTS'] == checkpoints.BACKBONE_LAYOUTS
