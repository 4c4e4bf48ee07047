"""The kinds of files weights come in, told apart by what is in them; names stay as stored."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmseg_m2f.adapters.checkpoints.array_pickle import load_arrays
from mmseg_m2f.adapters.checkpoints.safe_pickle import File, MapLocation, load_plain

Checkpoint = dict[str, Any]

# Of torch's older format; other pickles are not torch's.
_TORCH_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:-1]
_HEAD = 64
_MAX_HEADER = 100_000_000  # the limit of safetensors itself
# A folder of Hugging Face holds one of these, in the order transformers looks for them.
_WHOLE = ('model.safetensors', 'pytorch_model.bin')
_INDEX = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')


def load_container(file: File, name: str, map_location: MapLocation = None) -> Any:
    """What ``file`` holds, as a dict with ``state_dict`` and ``meta`` if it is of weights.

    Raises:
        pickle.UnpicklingError: It names something beyond tensors and plain values; the message
            then holds ``GLOBAL <name>``. Or torch's reader finds it damaged.
        ImportError: It needs safetensors, which is not installed.
        Errors of the readers on damaged files pass through.
    """
    if isinstance(file, str | Path) and Path(file).is_dir():
        return _load_folder(Path(file), map_location)
    kind = _kind_of(file, name)
    if kind == 'torch':
        content = _with_state_dict(load_plain(file, map_location))
    else:
        weights, meta = _opened(file, _READERS[kind])
        content = {'state_dict': _moved(weights, map_location), 'meta': meta}
    bare = isinstance(content, dict) and not content.get('meta')
    if bare and isinstance(file, str | Path) and (beside := _meta_beside(Path(file))):
        content['meta'] = beside
    return content


def has_mark_of_torch(file: File) -> bool:
    """Whether a file begins as ``torch.save`` begins it."""
    if isinstance(file, str | Path) and Path(file).is_dir():
        return False
    head = _opened(file, _read_head)
    return head.startswith(b'PK\x03\x04') or _TORCH_MAGIC in head


def _kind_of(file: File, name: str) -> str:
    """``torch``, ``pickle`` or ``safetensors``; what is none of them is left to torch."""
    head = _opened(file, _read_head)
    if head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _MAX_HEADER:
        return 'safetensors'
    # A damaged one has its suffix still.
    if Path(name).suffix == '.safetensors' and not head.startswith(b'PK'):
        return 'safetensors'
    # The pickles of protocol 0 and 1 have no mark.
    if head.startswith(b'\x80') or (Path(name).suffix == '.pkl' and head[:2] != b'PK'):
        return 'torch' if _TORCH_MAGIC in head else 'pickle'
    return 'torch'


def _read_head(file: BinaryIO) -> bytes:
    return file.read(_HEAD)


def _opened(file: File, read: Callable[[BinaryIO], Any]) -> Any:
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:
            return read(opened)
    file.seek(0)
    result = read(file)
    file.seek(0)
    return result


def _load_safetensors(file: BinaryIO) -> tuple[dict[str, Tensor], dict]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install safetensors') from error
    try:
        return load(file.read()), {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _load_pickle(file: BinaryIO) -> tuple[dict[str, Tensor], dict]:
    """Detectron2's files: arrays in ``model``, beside them who wrote it; or arrays alone."""
    try:
        content = load_arrays(file)
    except pickle.UnpicklingError as error:
        if 'GLOBAL' in str(error):
            raise
        raise ValueError(str(error)) from error
    except MemoryError as error:
        # A damaged length, more likely than weights that large.
        raise ValueError('it asks for more memory than there is') from error
    arrays = content.get('model', content) if isinstance(content, dict) else None
    if not isinstance(arrays, dict) or not arrays:
        raise ValueError('a pickle without a dictionary of arrays')
    others = content.items() if arrays is not content else ()
    plain = {key: value for key, value in others if type(value) in (str, int, float, bool)}
    return {str(key): _tensor(key, value) for key, value in arrays.items()}, plain


_READERS = {'safetensors': _load_safetensors, 'pickle': _load_pickle}


def _tensor(key: Any, value: Any) -> Tensor:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in 'biuf':
        raise ValueError(f'{key!r} is no array of numbers')
    native = np.array(value, value.dtype.newbyteorder('='), order='C')
    return torch.from_numpy(native)


def _load_folder(folder: Path, map_location: MapLocation) -> Checkpoint:
    config = folder / 'config.json'
    if not config.is_file():
        raise ValueError('the folder has no config.json, so it is not one of Hugging Face')
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        weights.update(load_container(path, path.name, map_location)['state_dict'])
    return {'state_dict': weights, 'meta': _meta_of(_json(config))}


def _meta_beside(file: Path) -> dict[str, Any]:
    """Of a weights file of Hugging Face that was given without its folder."""
    if file.name not in _WHOLE:
        return {}
    try:
        settings = _json(file.with_name('config.json'))
        is_ours = isinstance(settings, dict) and settings.get('model_type') == 'mask2former'
        return _meta_of(settings) if is_ours else {}
    except (OSError, ValueError):
        return {}


def _meta_of(settings: Any) -> dict[str, Any]:
    """The settings of Hugging Face, and the classes they name where MMEngine's tools look."""
    names = settings.get('id2label') if isinstance(settings, dict) else None
    meta: dict[str, Any] = {'huggingface_config': settings}
    if isinstance(names, dict) and names:
        classes = [str(names[i]) for i in sorted(names, key=int)]
        meta['dataset_meta'] = {'classes': classes, 'palette': colors(len(classes))}
    return meta


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def colors(number: int) -> list[list[int]]:
    """``(red, green, blue)`` per class, all different: Pascal VOC's, without the first, black.

    Source: the color map of the VOC development kit: the bits of an index, three by three, fill
    the channels from their highest bit on.
    """
    return [[_channel(index, of) for of in range(3)] for index in range(1, number + 1)]


def _channel(index: int, of: int) -> int:
    return sum((index >> (3 * bit + of) & 1) << (7 - bit) for bit in range(8))


def _weight_files(folder: Path) -> list[Path]:
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
    for name in _INDEX:
        if (folder / name).is_file():
            index = _json(folder / name)
            # Names only: an index leads nowhere outside of its folder.
            parts = [folder / Path(part).name for part in sorted(set(index['weight_map'].values()))]
            if missing := [path.name for path in parts if not path.is_file()]:
                raise ValueError(f'{name} lists files that are not there: {missing}')
            return parts
    raise ValueError(f'the folder has none of {[*_WHOLE, *_INDEX]}')


def _with_state_dict(checkpoint: Any) -> Any:
    """Weights under ``state_dict``, where MMEngine looks, if they are ``model`` or all there is."""
    if not isinstance(checkpoint, dict) or 'state_dict' in checkpoint:
        return checkpoint
    if _is_weights(checkpoint.get('model')):
        return {'meta': {}, **checkpoint, 'state_dict': checkpoint['model']}
    return {'state_dict': checkpoint, 'meta': {}} if _is_weights(checkpoint) else checkpoint


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(item, Tensor) for item in value.values())
    )


def _moved(weights: Mapping[str, Tensor], map_location: MapLocation) -> dict[str, Tensor]:
    # The other forms of map_location speak of devices a file was saved from; these have none.
    if not isinstance(map_location, str | torch.device):
        return dict(weights)
    return {key: value.to(map_location) for key, value in weights.items()}
