"""Files of other projects are read as they are, and damaged ones are named."""

import json
import pickle
import struct
import sys
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

import mmseg_m2f.adapters  # noqa: F401 - the loader
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError, UnsafeCheckpointError
from mmseg_m2f.adapters.checkpoints.formats import weights_of
from mmseg_m2f.adapters.checkpoints.loader import read_checkpoint
from tests.adapters.checkpoints.hostile import Call

ARRAYS = {
    'backbone.stem.conv1.weight': np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    'half': np.arange(3, dtype=np.float16),
    'count': np.array(5),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'big endian': np.arange(3, dtype='>f4'),
}
TENSORS = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(2, dtype=torch.bfloat16)}


def load(path: Path) -> dict:
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def assert_holds(loaded: dict, tensors: dict[str, torch.Tensor]) -> None:
    assert loaded['state_dict'].keys() == tensors.keys()
    for key, value in loaded['state_dict'].items():
        assert type(value) is torch.Tensor
        assert value.dtype == tensors[key].dtype
        assert torch.equal(value, tensors[key])


# Protocols 0 and 1 have no mark: there the suffix must tell.
@pytest.mark.parametrize(
    ('name', 'protocol'),
    [
        *(('model.pkl', protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        *(('model.pth', protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_arrays_of_detectron2(tmp_path: Path, name: str, protocol: int) -> None:
    """Arrays, or tensors as the official code's tool for Swin's weights pickles them."""
    path = tmp_path / name
    base = torch.arange(12.0).reshape(3, 4)
    tensors = OrderedDict(
        **TENSORS, view=base[1:, ::2], parameter=torch.nn.Parameter(base), empty=torch.zeros(0, 3)
    )
    tensors._metadata = {'': {'version': 1}}
    native = {key: value.astype(value.dtype.newbyteorder('=')) for key, value in ARRAYS.items()}
    arrays = {key: torch.from_numpy(np.array(value, order='C')) for key, value in native.items()}
    for content, expected in ((ARRAYS, arrays), (OrderedDict(ARRAYS), arrays), (tensors, tensors)):
        framed = {'model': content, '__author__': 'third_party', 'matching_heuristics': True}
        for whole in (framed, content):
            path.write_bytes(pickle.dumps(whole, protocol))
            assert_holds(load(path), expected)


def old_string(value: bytes) -> bytes:
    """Python 2 wrote its strings without an encoding."""
    return b'T' + struct.pack('<i', len(value)) + value


def old_file(value: np.ndarray) -> bytes:
    """``{'model': {'w': value}, '__author__': ...}`` from Python 2 and NumPy 1, protocol 2."""
    shape = b''.join(b'K' + bytes([side]) for side in value.shape) + b'\x86'
    dtype = b'cnumpy\ndtype\n' + old_string(b'f4') + b'K\x00K\x01\x87R'
    unset = b'J' + struct.pack('<i', -1)
    dtype += b'(K\x03' + old_string(b'<') + b'NNN' + unset + unset + b'K\x00tb'
    empty = b'cnumpy\nndarray\nK\x00\x85' + old_string(b'b') + b'\x87R'
    state = b'(K\x01' + shape + dtype + b'\x89' + old_string(value.tobytes()) + b'tb'
    array = b'cnumpy.core.multiarray\n_reconstruct\n' + empty + state
    author = old_string(b'__author__') + old_string('Jos\xe9'.encode('latin1'))
    model = b'}' + old_string(b'w') + array + b's'
    return b'\x80\x02}(' + old_string(b'model') + model + author + b'u.'


def test_arrays_in_the_old_encoding(tmp_path: Path) -> None:
    value = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    assert value.tobytes().decode('latin1') != value.tobytes().decode('ascii', 'ignore')
    # The bytes above are a pickle that Python itself understands so.
    known = pickle.loads(old_file(value), encoding='latin1')
    np.testing.assert_array_equal(known['model']['w'], value)
    path = tmp_path / 'old.pkl'
    path.write_bytes(old_file(value))
    loaded = load(path)['state_dict']['w']
    np.testing.assert_array_equal(loaded.numpy(), value)
    loaded.zero_()  # nothing of the file is kept: writing into the weights is allowed


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_damaged_arrays(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({'model': ARRAYS}, protocol)
    path = tmp_path / 'damaged.pkl'
    nothing = [pickle.dumps(value, protocol) for value in (3, [], {}, {'model': {'w': 'text'}})]
    endless = b'\x80\x04\x8e' + struct.pack('<Q', 2**62) + b'.'
    for data in (whole[: len(whole) // 2], whole[:-1], b'', b'<html>', endless, *nothing):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r'damaged\.pkl cannot be read') as error:
            load(path)
        assert not isinstance(error.value, UnsafeCheckpointError), data


@pytest.mark.filterwarnings('ignore:TypedStorage is deprecated')
@pytest.mark.parametrize('storage', ['storage', 3])
@pytest.mark.parametrize('size', [(4,), (-1,), (2**40,)])
def test_a_pickled_tensor_stays_within_its_numbers(
    tmp_path: Path, storage: object, size: tuple
) -> None:
    numbers = torch.ones(3).storage() if storage == 'storage' else storage
    rebuild = Call(torch._utils._rebuild_tensor_v2, numbers, 0, size, (1,), False, None)
    path = tmp_path / 'beyond.pkl'
    path.write_bytes(pickle.dumps({'model': {'w': rebuild}}, 4))
    with pytest.raises(CheckpointError, match=r'beyond\.pkl'):
        load(path)


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'some.name'
    save_file(TENSORS, path)
    assert_holds(load(path), TENSORS)
    assert_holds(read_checkpoint(BytesIO(path.read_bytes()), name='s3://some.name'), TENSORS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'safetensors.torch', None)
        with pytest.raises(ImportError, match='pip install safetensors'):
            load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r'some\.name cannot be read'):
        load(path)


@pytest.mark.parametrize('kind', ['whole', 'parts', 'torch'])
def test_folder_of_huggingface(tmp_path: Path, kind: str) -> None:
    settings = {'model_type': 'mask2former', 'id2label': {'1': 'sky', '0': 'wall'}}
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    if kind == 'whole':
        save_file(TENSORS, tmp_path / 'model.safetensors')
    elif kind == 'torch':
        torch.save(TENSORS, tmp_path / 'pytorch_model.bin')
    else:
        places = {key: f'model-{key}.safetensors' for key in TENSORS}
        for key, name in places.items():
            save_file({key: TENSORS[key]}, tmp_path / name)
        index = tmp_path / 'model.safetensors.index.json'
        index.write_text(json.dumps({'metadata': {}, 'weight_map': places}))
    # The colors are Pascal VOC's: bit by bit from the highest, so that all are different.
    named = {'classes': ['wall', 'sky'], 'palette': [[128, 0, 0], [0, 128, 0]]}
    file = tmp_path / ('pytorch_model.bin' if kind == 'torch' else 'model.safetensors')
    for path in (tmp_path, file) if file.exists() else (tmp_path,):
        assert_holds(load(path), TENSORS)
        assert load(path)['meta'] == {'dataset_meta': named}


def test_the_config_of_another_model_names_no_classes(tmp_path: Path) -> None:
    file = tmp_path / 'model.safetensors'
    save_file(TENSORS, file)
    keys = '{"model_type": "mask2former", "id2label": {"first": "x"}}'
    others = '{"model_type": "bert", "id2label": {"0": "x"}}'
    for text in (keys, others, '{"model_type": "mask2former", "id2label": 3}', '[]', '{'):
        (tmp_path / 'config.json').write_text(text)
        assert load(file)['meta'] == load(tmp_path)['meta'] == {}


def test_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'has none of .*model\.safetensors'):
        load(tmp_path)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    save_file(TENSORS, tmp_path.parent / 'outside.safetensors')
    with pytest.raises(CheckpointError, match=r"not there: \['outside\.safetensors'\]"):
        load(tmp_path)


@pytest.mark.parametrize('content', [TENSORS, {'model': TENSORS, 'epoch': 3}])
@pytest.mark.parametrize('name', ['w.pth', 'model_final.pkl'])
@pytest.mark.parametrize('old_format', [False, True])
def test_a_file_of_torch_keeps_the_keys_it_has(
    tmp_path: Path, content: dict, name: str, old_format: bool
) -> None:
    """Models of other packages look for them: nothing is added and nothing moved."""
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not old_format)
    loaded = load(tmp_path / name)
    assert list(loaded) == list(content)
    assert weights_of(loaded, 'w').keys() == TENSORS.keys()
    assert loaded['meta'] == {}  # mmseg's init_model asks for it in this way
    with pytest.raises(KeyError):
        loaded['state_dict']
    torch.save(torch.nn.BatchNorm2d(2).state_dict(), tmp_path / name)
    assert load(tmp_path / name)._metadata == {'': {'version': 2}}
