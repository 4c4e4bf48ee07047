"""Checkpoints are data: hostile files run nothing, our own and MMEngine's load."""

import builtins
import collections
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

import mmseg_m2f.adapters  # noqa: F401 - the loader
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError, UnsafeCheckpointError
from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader, read_checkpoint
from mmseg_m2f.adapters.checkpoints.write import save_weights
from tests.adapters.checkpoints.hostile import PICKLES, TORCH_FILES, pickled, saved, with_state
from tests.adapters.small_models import segmentor
from tests.adapters.toy_runner import Toy, toy_runner


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a hostile checkpoint would create."""
    return tmp_path / 'run'


@pytest.fixture
def hostile(tmp_path: Path, marker: Path) -> Path:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(TORCH_FILES['os.system'](str(marker)))
    return path


FILES = [
    *((f'{kind}.pth', TORCH_FILES[kind]) for kind in TORCH_FILES),
    *(
        # A pickle of protocol 0 has no mark, so its suffix has to tell.
        (f'{kind}, protocol {n}.{"pkl" if n == 0 else "pth"}', partial(pickled, kind, n))
        for kind in PICKLES
        for n in (0, 2, 4)
    ),
]


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize(('name', 'content'), FILES, ids=[name for name, _ in FILES])
def test_hostile_files_run_nothing(
    name: str, content: Callable[[str], bytes], tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / f'hostile {name}'
    path.write_bytes(content(str(marker)))
    for address in (str(path), f'file://{path}'):
        with pytest.raises(UnsafeCheckpointError, match=rf'hostile {name} was refused.*re-save'):
            CheckpointLoader.load_checkpoint(address)
        assert not marker.exists()


def test_the_hostile_files_are_hostile(tmp_path: Path, marker: Path) -> None:
    torch.load(BytesIO(TORCH_FILES['os.system'](str(marker))), weights_only=False)
    assert marker.exists()
    marker.unlink()
    # What MMEngine allows for the sake of its histories is enough to run anything.
    with torch.serialization.safe_globals([HistoryBuffer, (getattr, 'builtins.getattr')]):
        torch.load(BytesIO(TORCH_FILES['getattr chain'](str(marker))), weights_only=True)
    assert marker.exists()
    for kind in ('os.system', 'array of objects', 'torch.load'):
        marker.unlink()
        pickle.loads(pickled(kind, 2, str(marker)))
        assert marker.exists(), kind


@pytest.mark.parametrize(
    'name', ['numpy.dtype', 'numpy.ndarray', '_codecs.encode', 'collections.OrderedDict']
)
def test_a_pickle_cannot_change_the_names_it_may_use(tmp_path: Path, name: str) -> None:
    state = (None, {'__defaults__': ('rot13',), 'KINDS': 'O', '__call__': 1})
    path = tmp_path / 'hostile.pkl'
    for attempt in (state, state[1]):
        path.write_bytes(with_state(name, attempt))
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(path)
    path.write_bytes(pickle.dumps({'model': {'w': np.ones(2)}}, 2))
    assert len(read_checkpoint(path)['state_dict']) == 1
    other_codec = b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.'
    path.write_bytes(other_codec)
    with pytest.raises(UnsafeCheckpointError, match=r'_codecs\.encode'):
        read_checkpoint(path)


def test_names_that_others_allow_do_not_count(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(TORCH_FILES['eval'](str(marker)))
    others = [builtins.eval, (np.sum, 'some.name')]
    with torch.serialization.safe_globals(others):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(path)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


@pytest.mark.parametrize('how', ['resume', 'load_from', 'init_cfg'])
def test_stock_loads_refuse(hostile: Path, tmp_path: Path, marker: Path, how: str) -> None:
    if how == 'init_cfg':
        model = Toy()
        model.init_cfg = {'type': 'Pretrained', 'checkpoint': str(hostile)}
        load = model.init_weights
    else:
        resume = how == 'resume'
        load = toy_runner(tmp_path, f'refuse-{how}', load_from=str(hostile), resume=resume).train
    with pytest.raises(UnsafeCheckpointError):
        load()
    assert not marker.exists()


# A process that never names our package: building one of our models imports it.
PROGRAM = """
import sys
from mmengine import Config
from mmseg.apis import MMSegInferencer, init_model

file, config, model = *sys.argv[1:], Config(dict(model={model}))
try:
    {call}
except Exception as error:
    print(type(error).__name__)
"""


# The inferencer loads the file before it builds the model.
@pytest.mark.parametrize('call', ['init_model(model, file)', 'MMSegInferencer(config, file)'])
def test_stock_programs_refuse(call: str, hostile: Path, marker: Path) -> None:
    config = Path(__file__).parents[3] / 'configs/demo/mask2former_r18_facade.py'
    program = PROGRAM.format(model=segmentor(), call=call)
    command = [sys.executable, '-c', program, str(hostile), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == 'UnsafeCheckpointError'
    assert not marker.exists()


@pytest.mark.parametrize(
    'config',
    [
        'import os; os.system("touch {}")',
        'a = __import__("os").system("touch {}")',
        'a = dict(open)("{}")',
        'a = open(file="{}", mode="w")',
        'a = [open("{}", "w") for _ in (1,)]',
        '_base_ = "{}"',
        'a.b = "{}"',
        'a = dict(**{{}}[open("{}", "w")])',
        'not python at all {}',
    ],
)
def test_config_text_that_runs_is_left_out(tmp_path: Path, marker: Path, config: str) -> None:
    program = config.format(marker)
    path = tmp_path / 'text.pth'
    hub = {'runtime_info': {'cfg': program, 'iter': 3}}
    torch.save({'meta': {'config': program, 'cfg': program, 'iter': 3}, 'message_hub': hub}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint['meta'] == {'iter': 3}
    assert checkpoint['message_hub']['runtime_info'] == {'iter': 3}
    assert not marker.exists()


def test_what_is_plain_stays(tmp_path: Path) -> None:
    """Config text of plain values, and a config dict, which becomes a plain dict."""
    plain = (
        "a = dict(b=[1, -2.5, (None, True)], type='X')\nc = {'d.e': 1e-05}\n"
        "_scope_ = 'mmseg'\nf = 'a' 'b'\ng = dict(**{'h-i': 1})\n"
    )
    path = tmp_path / 'text.pth'
    named = ConfigDict(classes=('a',), map=ConfigDict(x=1))
    torch.save({'meta': {'cfg': plain, 'dataset_meta': named}}, path)
    meta = read_checkpoint(path)['meta']
    assert meta == {'cfg': plain, 'dataset_meta': {'classes': ('a',), 'map': {'x': 1}}}
    assert type(meta['dataset_meta']) is type(meta['dataset_meta']['map']) is dict


def test_own_resume_file_loads(tmp_path: Path) -> None:
    toy_runner(tmp_path, 'own').train()
    path = tmp_path / 'iter_6.pth'
    ours = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    theirs = torch.load(path, weights_only=False)
    assert list(ours) == list(theirs)
    assert ours['meta'] == theirs['meta']
    losses, expected = (
        checkpoint['message_hub']['log_scalars']['train/loss'] for checkpoint in (ours, theirs)
    )
    assert type(losses) is HistoryBuffer
    for got, wanted in zip(losses.data, expected.data, strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
    assert losses.mean() == expected.mean()
    assert losses.statistics('min') == expected.statistics('min')


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'])
def test_values_of_numpy_come_back(tmp_path: Path, module: str) -> None:
    values = {
        'float': np.float64(1.5),
        'array': np.arange(6, dtype=np.float32).reshape(2, 3),
        'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)),
        'big endian': np.arange(3, dtype='>i2'),
        'empty': np.zeros((0, 4)),
        'bool': np.array([True, False]),
        'names': np.array(['wall', 'door']),
        'nested': [({'deep': np.int32(7)},)],
        'dict': collections.OrderedDict(a=np.ones(2)),
    }
    # Whatever NumPy runs here, the other's names must load as well.
    content = saved(values, _use_new_zipfile_serialization=False)
    for known in (b'cnumpy._core.', b'cnumpy.core.'):
        content = content.replace(known, f'c{module}.'.encode())
    path = tmp_path / 'numpy.pth'
    path.write_bytes(content)
    got = read_checkpoint(path)
    flat = {**got, 'nested': got['nested'][0][0]['deep'], 'dict': got['dict']['a']}
    wanted = {**values, 'nested': np.int32(7), 'dict': np.ones(2)}
    for key, value in wanted.items():
        np.testing.assert_array_equal(flat[key], value)
        assert flat[key].dtype == value.dtype
        assert type(flat[key]) is type(value)
    got['array'][0, 0] = 5


def test_damaged_files(tmp_path: Path) -> None:
    whole = saved({'state_dict': {'w': torch.zeros(1000)}})
    old = saved({'w': torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    path = tmp_path / 'damaged.pth'
    for data in (whole[: len(whole) // 2], old[: len(old) // 2], b'', b'<html>404</html>', b'PK'):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r'damaged\.pth cannot be read') as error:
            read_checkpoint(path)
        assert not isinstance(error.value, UnsafeCheckpointError)
    with pytest.raises(FileNotFoundError, match=r'no checkpoint file /nowhere/x\.pth'):
        CheckpointLoader.load_checkpoint('/nowhere/x.pth')


def test_no_address_is_left_to_the_reader_of_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_from_new(filename: str, map_location: object) -> None:
        raise AssertionError('read by MMEngine')

    load_from_new.__module__ = 'mmengine.runner.checkpoint'
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('new://', load_from_new)
    install_safe_loader()
    addresses = ('a.pth', 'file:///a', 'https://h/a.pth', 'torchvision://r', 's3://b/k', 'x:s3://b')
    for address in addresses:
        loader = CheckpointLoader._get_checkpoint_loader(address)
        assert loader.__module__ == install_safe_loader.__module__, address
    for address in ('new://a', 'pavi://a/b', 'hf://a/b.pth', 'file://ftp://a/b.pth'):
        with pytest.raises(
            CheckpointError, match=rf'^{address} is no address .*https://.*its path'
        ):
            CheckpointLoader.load_checkpoint(address)


@pytest.fixture
def downloads(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were fetched; files called ``bad.pth`` are hostile."""
    weights = {'backbone.conv1.weight': torch.ones(1), 'head.fc.weight': torch.ones(1)}
    addresses = []

    def fetch(url: str, path: str, progress: bool) -> None:
        addresses.append(url)
        is_bad = Path(path).name == 'bad.pth'
        content = TORCH_FILES['eval'](str(marker)) if is_bad else saved({'state_dict': weights})
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    return addresses


def test_a_download_is_kept_and_read_safely(downloads: list[str], marker: Path) -> None:
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint('https://host/a/good.pth?x=1')
        assert list(loaded['state_dict']) == ['backbone.conv1.weight', 'head.fc.weight']
    assert downloads == ['https://host/a/good.pth?x=1']
    with pytest.raises(UnsafeCheckpointError, match=r'https://host/bad\.pth'):
        CheckpointLoader.load_checkpoint('https://host/bad.pth')
    assert not marker.exists()


def test_named_models_resolve(downloads: list[str]) -> None:
    CheckpointLoader.load_checkpoint('torchvision://resnet50')
    CheckpointLoader.load_checkpoint('open-mmlab://resnet50_v1c')
    assert ['resnet50' in downloads[0], 'resnet50_v1c' in downloads[1]] == [True, True]
    kept = CheckpointLoader.load_checkpoint('mmcls://vgg11')['state_dict']
    assert list(kept) == ['conv1.weight']
    with pytest.raises(ValueError, match=r"no model 'resnet5', known are .*resnet50"):
        CheckpointLoader.load_checkpoint('torchvision://resnet5')


def test_published_weights_load_plainly(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    path = tmp_path / 'new' / 'weights.pth'
    meta = {'dataset_meta': {'classes': ('a', 'b'), 'palette': [[0, 0, 0]]}, 'mIoU': 0.5}
    save_weights(model.state_dict(), path, meta)
    loaded = torch.load(path, weights_only=True)
    assert loaded['meta'] == meta
    torch.testing.assert_close(loaded['state_dict'], model.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ['weights.pth']
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    load_checkpoint(other, str(path), strict=True)
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ('meta', 'where'),
    [({'a': {'b': [np.float32(1)]}}, r"meta\['a'\]\['b'\]\[0\]"), ({'a': nn.ReLU}, 'meta')],
)
def test_meta_must_be_plain(tmp_path: Path, meta: dict, where: str) -> None:
    path = tmp_path / 'weights.pth'
    with pytest.raises(TypeError, match=where):
        save_weights(nn.Linear(1, 1).state_dict(), path, meta)
    assert not path.exists()
