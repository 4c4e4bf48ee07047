"""Checkpoints are data: hostile files run nothing, our own and MMEngine's load."""

import builtins
import collections
import os
import pickle
import runpy
import struct
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmseg_m2f.adapters.checkpoints.errors import CheckpointError, UnsafeCheckpointError
from mmseg_m2f.adapters.checkpoints.loader import install_safe_loader, read_checkpoint
from mmseg_m2f.adapters.checkpoints.write import save_weights
from tests.adapters.toy_runner import Toy, toy_runner


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition('.')
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b'(' + b''.join(args) + b'tR'


def torch_file(body: bytes) -> bytes:
    """A file of torch's older format whose pickle is ``body``."""
    info = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
    head = (torch.serialization.MAGIC_NUMBER, 1001, info)
    return b''.join(
        [*(pickle.dumps(part, 2) for part in head), b'\x80\x02', body, b'.', pickle.dumps([], 2)]
    )


def getattr_chain(code: str) -> bytes:
    """From a history's ``getattr`` to ``eval``; runs under MMEngine's allow-list."""
    history = name('mmengine.logging.history_buffer.HistoryBuffer')

    def attribute(owner: bytes, key: str) -> bytes:
        return call(name('builtins.getattr'), owner, text(key))

    def result(function: bytes, kind: bytes, *args: bytes) -> bytes:
        rebuild = name('torch._tensor._rebuild_from_type_v2')
        return call(rebuild, function, kind, b'(' + b''.join(args) + b't', b'}')

    scope = attribute(attribute(history, '__init__'), '__globals__')
    a_dict = attribute(scope, '__class__')
    known = result(attribute(scope, 'get'), a_dict, text('__builtins__'))
    look_up = attribute(known, 'get')
    evaluate = result(look_up, attribute(look_up, '__class__'), text('eval'))
    a_float = result(look_up, attribute(a_dict, '__class__'), text('float'))
    return torch_file(result(evaluate, a_float, text(f'{code} or 0.0')))


def pointer_array() -> bytes:
    """Eight bytes declared to be an object pointer, by a dtype with its flags taken away."""
    minus_one = b'J' + struct.pack('<i', -1)
    plain = call(name('numpy.dtype'), text('O8'), b'\x89', b'\x88')
    dtype = plain + b'(K\x03' + text('|') + b'NNN' + minus_one + minus_one + b'K\x00tb'
    raw = call(name('_codecs.encode'), text('AAAAAAAA'), text('latin1'))
    array = call(
        name('numpy._core.multiarray._reconstruct'), name('numpy.ndarray'), b'(K\x00t', text('b')
    )
    return torch_file(array + b'(K\x01(K\x01t' + dtype + b'\x89' + raw + b'tb')


def saved(value: object, **options: object) -> bytes:
    file = BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


HOSTILE: dict[str, Callable[[str], bytes]] = {
    'os.system': lambda m: saved({'state_dict': {}, 'meta': Call(os.system, f'touch {m}')}),
    'old format': lambda m: saved(
        Call(os.system, f'touch {m}'), _use_new_zipfile_serialization=False
    ),
    'plain pickle': lambda m: pickle.dumps(Call(os.system, f'touch {m}')),
    'exec': lambda m: saved(Call(builtins.exec, f'open({m!r}, "w")')),
    'eval': lambda m: saved(Call(builtins.eval, f'open({m!r}, "w")')),
    'open': lambda m: saved(Call(builtins.open, m, 'w')),
    'subprocess': lambda m: saved(Call(subprocess.Popen, ['touch', m])),
    'runpy': lambda m: saved(Call(runpy._run_code, f'open({m!r}, "w")', {})),
    'torch.load': lambda m: saved(
        Call(torch.storage._load_from_bytes, saved(Call(os.system, f'touch {m}')))
    ),
    'getattr': lambda m: torch_file(
        call(name('builtins.getattr'), name('torch.Size'), text('__new__'))
    ),
    'getattr chain': lambda m: getattr_chain(f'open({m!r}, "w").close()'),
    'array of objects': lambda m: saved(
        np.array([Call(os.system, f'touch {m}')], dtype=object), pickle_protocol=2
    ),
    'array of pointers': lambda m: pointer_array(),
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a hostile file would create."""
    return tmp_path / 'run'


@pytest.fixture(autouse=True)
def installed() -> None:
    install_safe_loader()


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_files_run_nothing(kind: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE[kind](str(marker)))
    for address in (str(path), f'file://{path}'):
        with pytest.raises(UnsafeCheckpointError, match=r'hostile\.pth was refused.*re-save'):
            CheckpointLoader.load_checkpoint(address)
        assert not marker.exists()


def test_the_hostile_files_are_hostile(tmp_path: Path, marker: Path) -> None:
    torch.load(BytesIO(HOSTILE['os.system'](str(marker))), weights_only=False)
    assert marker.exists()
    marker.unlink()
    # What MMEngine allows for the sake of its histories is enough to run anything.
    with torch.serialization.safe_globals([HistoryBuffer, (getattr, 'builtins.getattr')]):
        torch.load(BytesIO(HOSTILE['getattr chain'](str(marker))), weights_only=True)
    assert marker.exists()


def test_the_refusal_says_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / 'some.pth'
    path.write_bytes(HOSTILE['os.system']('x'))
    with pytest.raises(UnsafeCheckpointError, match=r'some\.pth .* the name posix\.system'):
        read_checkpoint(path)


def test_what_others_allow_does_not_count(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE['eval'](str(marker)))
    others = [builtins.eval, (np.sum, 'some.name')]
    with torch.serialization.safe_globals(others):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(path)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


@pytest.mark.parametrize('resume', [True, False])
def test_runner_refuses(tmp_path: Path, marker: Path, resume: bool) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE['os.system'](str(marker)))
    runner = toy_runner(tmp_path, f'refuse-{resume}', load_from=str(path), resume=resume)
    with pytest.raises(UnsafeCheckpointError):
        runner.train()
    assert not marker.exists()


def test_pretrained_weights_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE['os.system'](str(marker)))
    model = Toy()
    model.init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    with pytest.raises(UnsafeCheckpointError):
        model.init_weights()
    assert not marker.exists()


INIT_MODEL = """
import sys
from mmengine import Config
from mmseg.apis import init_model

config = dict(
    model=dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
        decode_head=dict(
            type='mmseg_m2f.Mask2FormerHead', num_classes=2, in_channels=[4, 8, 16, 32]
        ),
    ),
)
try:
    init_model(Config(config), sys.argv[1], device='cpu')
except Exception as error:
    print(type(error).__name__)
"""


def test_init_model_refuses_in_a_process_that_never_named_us(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE['os.system'](str(marker)))
    command = [sys.executable, '-c', INIT_MODEL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == 'UnsafeCheckpointError'
    assert not marker.exists()


INFERENCER = """
import sys
from mmseg.apis import MMSegInferencer

try:
    MMSegInferencer(model=sys.argv[2], weights=sys.argv[1], device='cpu')
except Exception as error:
    print(type(error).__name__)
"""


def test_the_inferencer_which_loads_before_it_builds_refuses(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / 'hostile.pth'
    path.write_bytes(HOSTILE['os.system'](str(marker)))
    config = Path(__file__).parents[3] / 'configs/demo/mask2former_r18_facade.py'
    command = [sys.executable, '-c', INFERENCER, str(path), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == 'UnsafeCheckpointError'
    assert not marker.exists()


@pytest.mark.parametrize(
    'config',
    [
        'import os; os.system("touch {}")',
        'a = __import__("os").system("touch {}")',
        'a = dict(open)("{}")',
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


def test_config_text_of_plain_values_stays(tmp_path: Path) -> None:
    plain = (
        "a = dict(b=[1, -2.5, (None, True)], type='X')\nc = {'d.e': 1e-05}\n"
        "_scope_ = 'mmseg'\nf = 'a' 'b'\ng = dict(**{'h-i': 1})\n"
    )
    path = tmp_path / 'text.pth'
    torch.save({'meta': {'cfg': plain}}, path)
    assert read_checkpoint(path)['meta']['cfg'] == plain


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
    file = BytesIO()
    torch.save(values, file)
    # Whatever NumPy runs here, the other's names must load as well.
    path = tmp_path / 'numpy.pth'
    with torch_zip_renamed(file, module) as renamed:
        path.write_bytes(renamed.getvalue())
    got = read_checkpoint(path)
    flat = {**got, 'nested': got['nested'][0][0]['deep'], 'dict': got['dict']['a']}
    wanted = {**values, 'nested': np.int32(7), 'dict': np.ones(2)}
    for key, value in wanted.items():
        np.testing.assert_array_equal(flat[key], value)
        assert flat[key].dtype == value.dtype
        assert type(flat[key]) is type(value)
    got['array'][0, 0] = 5


def torch_zip_renamed(file: BytesIO, module: str) -> BytesIO:
    """The archive with NumPy's internal module called as in the other major version."""
    import zipfile

    result = BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(result, 'w') as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith('data.pkl'):
                for known in (b'cnumpy._core.', b'cnumpy.core.'):
                    data = data.replace(known, b'c' + module.encode() + b'.')
            target.writestr(info.filename, data)
    return result


def test_config_dict_becomes_a_dict(tmp_path: Path) -> None:
    path = tmp_path / 'config.pth'
    torch.save({'meta': {'dataset_meta': ConfigDict(classes=('a',), map=ConfigDict(x=1))}}, path)
    meta = read_checkpoint(path)['meta']['dataset_meta']
    assert meta == {'classes': ('a',), 'map': {'x': 1}}
    assert type(meta) is dict
    assert type(meta['map']) is dict


def test_damaged_files(tmp_path: Path) -> None:
    whole = saved({'state_dict': {'w': torch.zeros(1000)}})
    old = saved({'w': torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    path = tmp_path / 'damaged.pth'
    for data in (whole[: len(whole) // 2], old[: len(old) // 2], b'', b'<html>404</html>', b'PK'):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r'damaged\.pth (cannot be read|is not)') as error:
            read_checkpoint(path)
        assert not isinstance(error.value, UnsafeCheckpointError)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r'no checkpoint file /nowhere/x\.pth'):
        CheckpointLoader.load_checkpoint('/nowhere/x.pth')


def test_no_address_is_left_to_the_reader_of_mmengine() -> None:
    schemes = CheckpointLoader._schemes
    assert not [key for key in schemes if schemes[key].__module__.startswith('mmengine.')]
    addresses = ('a.pth', 'file:///a', 'https://h/a.pth', 'torchvision://r', 's3://b/k', 'x:s3://b')
    for address in addresses:
        loader = CheckpointLoader._get_checkpoint_loader(address)
        assert loader.__module__ == install_safe_loader.__module__, address


@pytest.mark.parametrize('address', ['pavi://a/b', 'hf://a/b.pth', 'file://ftp://a/b.pth'])
def test_an_address_without_a_reader_is_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match=rf'^{address} is no address .*https://.*its path'):
        CheckpointLoader.load_checkpoint(address)


def test_a_scheme_that_only_mmengine_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_from_new(filename: str, map_location: object) -> None:
        raise AssertionError('read by MMEngine')

    load_from_new.__module__ = 'mmengine.runner.checkpoint'
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('new://', load_from_new)
    install_safe_loader()
    with pytest.raises(CheckpointError, match='no address'):
        CheckpointLoader.load_checkpoint('new://a')


def test_download_is_read_safely(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {'good.pth': saved({'state_dict': {}}), 'bad.pth': HOSTILE['eval'](str(marker))}
    fetched = []

    def fetch(url: str, path: str, progress: bool) -> None:
        fetched.append(url)
        Path(path).write_bytes(files[Path(path).name])

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint('https://host/a/good.pth?x=1') == {'state_dict': {}}
    assert fetched == ['https://host/a/good.pth?x=1']
    with pytest.raises(UnsafeCheckpointError, match=r'https://host/bad\.pth'):
        CheckpointLoader.load_checkpoint('https://host/bad.pth')
    assert not marker.exists()


def test_named_models_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {'backbone.conv1.weight': torch.ones(1), 'head.fc.weight': torch.ones(1)}
    urls = []

    def fetch(url: str, path: str, progress: bool) -> None:
        urls.append(url)
        Path(path).write_bytes(saved({'state_dict': weights}))

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    CheckpointLoader.load_checkpoint('torchvision://resnet50')
    CheckpointLoader.load_checkpoint('open-mmlab://resnet50_v1c')
    assert ['resnet50' in urls[0], 'resnet50_v1c' in urls[1]] == [True, True]
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
