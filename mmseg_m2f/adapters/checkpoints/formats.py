"""The kinds of files that hold weights, told apart by their content; names stay as stored."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.safe_pickle import MapLocation, load_pickle, load_torch
from mmseg_m2f.metadata.colors import voc_colors

Checkpoint = dict[str, Any]
File = str | Path | BinaryIO

# A file of torch's older format begins with a pickle of this number.
_TORCH_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:-1]
_ZIP_MAGIC = b'PK\x03\x04'
_HEAD = 64
_MAX_HEADER = 100_000_000  # the limit of safetensors itself
# A folder of Hugging Face holds one of these, in the order in which transformers looks for them.
_WHOLE = ('model.safetensors', 'pytorch_model.bin')
_INDEX = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')


class Unframed(OrderedDict):
    """A file of torch without ``state_dict`` and ``meta``, with exactly the keys it holds.

    ``checkpoint['meta']`` gives an empty dict, because mmseg's ``init_model`` asks for it.
    """

    def __missing__(self, key: str) -> dict:
        if key == 'meta':
            return {}
        raise KeyError(key)


def read_file(file: File, name: str, map_location: MapLocation = None) -> Any:
    """Read a file, or a folder of Hugging Face.

    Args:
        file: a path, or an open binary file that can seek.
        name: what the file is called; the suffix of a damaged file tells its kind.
        map_location: as in ``torch.load``.

    Returns:
        What ``torch.save`` saved; from the other kinds a dict with ``state_dict`` and ``meta``.

    Raises:
        pickle.UnpicklingError: The file asks for more than tensors and plain values; for a name
            the message holds ``GLOBAL <name>``.
        ImportError: The file needs safetensors, which is not installed.
        Other errors of the readers on damaged files pass through.
    """
    if not isinstance(file, str | Path):
        return _read(file, name, map_location, {})
    if Path(file).is_dir():
        return _read_folder(Path(file), map_location)
    with open(file, 'rb') as opened:
        return _read(opened, name, map_location, _meta_beside(Path(file)))


def weights_of(checkpoint: Any, name: str) -> Mapping[str, Tensor]:
    """Return the weights in ``state_dict`` or ``model``, or the checkpoint itself if it is weights.

    Raises:
        CheckpointError: None of the three is a dict of tensors. ``name`` begins the message.
    """
    held = type(checkpoint).__name__
    if isinstance(checkpoint, Mapping):
        places: tuple[Any, ...] = (checkpoint.get('state_dict'), checkpoint.get('model'))
        for place in (*places, checkpoint):
            if is_weights(place):
                return place
        held = f'dict with {list(checkpoint)[:5]}'
    raise CheckpointError(
        f'{name} holds no weights: it is a {held}. Wanted is a dict of names and tensors, alone or '
        'under state_dict or model'
    )


def is_weights(value: Any) -> bool:
    """Return True if ``value`` is a dict of names and tensors that is not empty."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def _read(file: BinaryIO, name: str, map_location: MapLocation, meta: dict[str, Any]) -> Any:
    """Read one file; ``meta`` was found beside it."""
    head, suffix = file.read(_HEAD), Path(name).suffix
    file.seek(0)
    is_torch = head.startswith(_ZIP_MAGIC) or _TORCH_MAGIC in head
    has_header = head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _MAX_HEADER
    if has_header or (suffix == '.safetensors' and not is_torch):
        return {'state_dict': _moved(_read_safetensors(file), map_location), 'meta': meta}
    # Pickles of protocol 0 and 1 have no mark, so there the suffix has to tell.
    if not is_torch and (head.startswith(b'\x80') or suffix == '.pkl'):
        weights, own_meta = _read_pickle(file)
        return {'state_dict': _moved(weights, map_location), 'meta': own_meta or meta}
    try:
        content = load_torch(file, map_location)
    except pickle.UnpicklingError as error:
        if is_torch or 'GLOBAL' in str(error):
            raise
        raise ValueError('torch.save did not write it') from error
    if meta and is_weights(content):
        return {'state_dict': content, 'meta': meta}
    if isinstance(content, dict) and not {'state_dict', 'meta'} & content.keys():
        return _unframed(content)
    return content


def _unframed(content: dict) -> Unframed:
    unframed = Unframed(content)
    # A module's state dict keeps its versions in an attribute.
    unframed.__dict__.update(getattr(content, '__dict__', {}))
    return unframed


def _read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install safetensors') from error
    try:
        return load(file.read())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_pickle(file: BinaryIO) -> tuple[dict[str, Tensor], dict]:
    """Read a file of Detectron2: weights in ``model`` beside plain values, or weights alone."""
    try:
        content = load_pickle(file)
    except pickle.UnpicklingError as error:
        if 'GLOBAL' in str(error):
            raise
        raise ValueError(str(error)) from error
    except MemoryError as error:
        # More likely a damaged length than weights of that size.
        raise ValueError('it asks for more memory than there is') from error
    weights = content.get('model', content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise ValueError('a pickle without a dict of arrays')
    others = content.items() if weights is not content else ()
    meta = {key: value for key, value in others if type(value) in (str, int, float, bool)}
    return {str(key): _tensor(key, value) for key, value in weights.items()}, meta


def _tensor(key: Any, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in 'biuf':
        raise ValueError(f'{key!r} is no array of numbers')
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder('='), order='C'))


def _read_folder(folder: Path, map_location: MapLocation) -> Checkpoint:
    config = folder / 'config.json'
    if not config.is_file():
        raise ValueError('the folder has no config.json, so it is not one of Hugging Face')
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        content = read_file(path, path.name, map_location)
        weights.update(weights_of(content, path.name))
    return {'state_dict': weights, 'meta': _meta_of(_read_json(config))}


def _weight_files(folder: Path) -> list[Path]:
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
    for name in _INDEX:
        if (folder / name).is_file():
            index = _read_json(folder / name)
            # Only the last part of a name counts, so that an index cannot lead out of its folder.
            parts = [folder / Path(part).name for part in sorted(set(index['weight_map'].values()))]
            if missing := [path.name for path in parts if not path.is_file()]:
                raise ValueError(f'{name} lists files that are not there: {missing}')
            return parts
    raise ValueError(f'the folder has none of {[*_WHOLE, *_INDEX]}')


def _meta_beside(file: Path) -> dict[str, Any]:
    """Return the meta of a weights file of Hugging Face that was given without its folder."""
    if file.name not in _WHOLE:
        return {}
    try:
        settings = _read_json(file.with_name('config.json'))
        is_mask2former = isinstance(settings, dict) and settings.get('model_type') == 'mask2former'
        return _meta_of(settings) if is_mask2former else {}
    except (OSError, ValueError):
        return {}


def _meta_of(settings: Any) -> dict[str, Any]:
    """Return the settings of Hugging Face, and their class names where MMEngine's tools look."""
    names = settings.get('id2label') if isinstance(settings, dict) else None
    meta: dict[str, Any] = {'huggingface_config': settings}
    if isinstance(names, dict) and names:
        classes = [str(names[i]) for i in sorted(names, key=int)]
        meta['dataset_meta'] = {'classes': classes, 'palette': voc_colors(len(classes))}
    return meta


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def _moved(weights: Mapping[str, Tensor], map_location: MapLocation) -> dict[str, Tensor]:
    # The other forms of map_location speak of the device a file was saved from; these have none.
    if not isinstance(map_location, str | torch.device):
        return dict(weights)
    return {key: value.to(map_location) for key, value in weights.items()}
