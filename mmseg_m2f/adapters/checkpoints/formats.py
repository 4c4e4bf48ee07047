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

    The arguments are those of `read_checkpoint`; the suffix of ``name`` tells the kind of a damaged
    file. What ``torch.save`` saved comes back; the other kinds give ``state_dict`` and ``meta``.

    Raises:
        pickle.UnpicklingError: The file asks for more; for a name it says ``GLOBAL <name>``.
    """
    if not isinstance(file, str | Path):
        return _read(file, name, map_location, {})
    path = Path(file)
    if path.is_dir():
        weights: dict[str, Tensor] = {}
        for part in _weight_files(path):
            weights.update(weights_of(read_file(part, part.name, map_location), part.name))
        return {'state_dict': weights, 'meta': _meta_of(path / 'config.json')}
    meta = _meta_of(path.with_name('config.json')) if path.name in _WHOLE else {}
    with path.open('rb') as opened:
        return _read(opened, name, map_location, meta)


def weights_of(checkpoint: Any, name: str) -> Mapping[str, Tensor]:
    """Return the weights in ``state_dict`` or ``model``, or the checkpoint itself if it is weights.

    Raises:
        CheckpointError: None of the three is a dict of tensors. ``name`` begins the message.
    """
    held = type(checkpoint).__name__
    if isinstance(checkpoint, Mapping):
        for place in (checkpoint.get('state_dict'), checkpoint.get('model'), checkpoint):
            if is_weights(place):
                return place  # type: ignore[return-value]
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
    head, suffix = file.read(64), Path(name).suffix
    file.seek(0)
    is_torch = head.startswith(_ZIP_MAGIC) or _TORCH_MAGIC in head
    has_header = head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _MAX_HEADER
    if has_header or (suffix == '.safetensors' and not is_torch):
        return {'state_dict': _read_safetensors(file), 'meta': meta}
    try:
        # Pickles of protocol 0 and 1 have no mark, so there the suffix has to tell.
        if not is_torch and (head.startswith(b'\x80') or suffix == '.pkl'):
            return {'state_dict': _weights_of_pickle(load_pickle(file)), 'meta': meta}
        content = load_torch(file, map_location)
    except pickle.UnpicklingError as error:
        if is_torch or 'GLOBAL' in str(error):
            raise
        raise ValueError(str(error)) from error  # damaged
    if meta and is_weights(content):
        return {'state_dict': content, 'meta': meta}
    if isinstance(content, dict) and not {'state_dict', 'meta'} & content.keys():
        unframed = Unframed(content)
        # A module's state dict keeps its versions in an attribute.
        unframed.__dict__.update(getattr(content, '__dict__', {}))
        return unframed
    return content


def _read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install safetensors') from error
    return load(file.read())


def _weights_of_pickle(content: Any) -> dict[str, Tensor]:
    """Return the arrays or tensors under ``model``, as Detectron2 writes them, or alone."""
    weights = content.get('model', content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise ValueError('a pickle without a dict of arrays')
    return {str(key): _tensor(key, value) for key, value in weights.items()}


def _tensor(key: Any, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in 'biuf':
        raise ValueError(f'{key!r} is no array of numbers')
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder('='), order='C'))


def _weight_files(folder: Path) -> list[Path]:
    found = next((name for name in (*_WHOLE, *_INDEX) if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f'the folder has none of {[*_WHOLE, *_INDEX]}')
    if found in _WHOLE:
        return [folder / found]
    listed = sorted(set(_read_json(folder / found)['weight_map'].values()))
    # Only the last part of a name counts, so that an index cannot lead out of its folder.
    parts = [folder / Path(part).name for part in listed]
    if missing := [path.name for path in parts if not path.is_file()]:
        raise ValueError(f'{found} lists files that are not there: {missing}')
    return parts


def _meta_of(config: Path) -> dict[str, Any]:
    """Return the class names of a ``config.json`` where MMEngine looks for them."""
    try:
        settings = _read_json(config)
        names = settings['id2label'] if settings['model_type'] == 'mask2former' else {}
        classes = [str(names[i]) for i in sorted(names, key=int)]
    except (OSError, LookupError, TypeError, ValueError):
        return {}
    named = {'classes': classes, 'palette': voc_colors(len(classes))}
    return {'dataset_meta': named} if classes else {}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))
