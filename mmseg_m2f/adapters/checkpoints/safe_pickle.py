"""Read pickles as data, never as programs.

A pickle is a small program: look up a name, call it, set its state. Here every name stands for a
function or class of ours that builds numbers, dicts and strings, whatever the file asks for. All
other names are refused. Two readers use these stand-ins:

* `load_torch` for what ``torch.save`` wrote: torch's own restricted reader, with a list of further
  names for NumPy arrays and for the histories in MMEngine's resume files;
* `load_pickle` for every other pickle: NumPy arrays such as Detectron2's ``.pkl``, or tensors.

The real things behind the names are not harmless. ``getattr`` is on MMEngine's own list, and from
it any function is in reach through a rebuild function on torch's list. ``numpy.dtype`` takes its
flags from the pickle, so a file may declare bytes to be pointers.
"""

import io
import pickle
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

MapLocation = str | torch.device | Callable | dict | None


class _Dtype:
    """Stand for ``numpy.dtype``: numbers, booleans and strings, no objects and no fields."""

    KINDS = 'biufcSU'

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code = str(code)
        self.order = '='

    def __setstate__(self, state: tuple) -> None:
        _version, self.order, subdtype, names, fields, *_ = state
        if (subdtype, names, fields) != (None, None, None):
            raise pickle.UnpicklingError('GLOBAL numpy.dtype with fields')

    def resolve(self) -> np.dtype:
        dtype = np.dtype(self.code) if re.fullmatch(r'[a-zA-Z]\d*', self.code) else None
        if dtype is None or dtype.kind not in self.KINDS:
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype({self.code!r})')
        return dtype.newbyteorder('<' if self.order == '<' else '>' if self.order == '>' else '=')


class _Array:
    """Stand for ``numpy.ndarray``, and for the call that makes an empty one, until the end."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def resolve(self) -> np.ndarray:
        _version, shape, dtype, is_fortran, raw = self.state
        # NumPy checks the size of the buffer against the shape; the copy owns its memory.
        values: np.ndarray = np.ndarray(
            shape, dtype.resolve(), buffer=_bytes(raw), order='F' if is_fortran else 'C'
        )
        return values.copy('K')


class _History:
    """Stand for MMEngine's ``HistoryBuffer``: the numbers, with the default statistics."""

    state: Mapping = {}

    def __setstate__(self, state: Mapping) -> None:
        self.state = state

    def resolve(self) -> HistoryBuffer:
        values, counts = (_resolved(self.state[k], {}) for k in ('_log_history', '_count_history'))
        return HistoryBuffer(values, counts, max_length=int(self.state['max_length']))


class _Dict(dict):
    """Stand for ``OrderedDict``, whose attributes (a module's ``_metadata``) are left out."""

    def __setstate__(self, state: Any) -> None:
        pass

    def resolve(self) -> dict:
        return dict(self)


def _array_from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """Build an array as pickle protocol 5 writes it."""
    array = _Array()
    array.state = (1, shape, dtype, order == 'F', bytes(buffer))
    return array


def _scalar(dtype: _Dtype, raw: bytes | str) -> Any:
    return np.ndarray((), dtype.resolve(), buffer=_bytes(raw))[()]


def _bytes(raw: bytes | str) -> bytes:
    # Python 2 had one type for text and bytes.
    raw = raw.encode('latin1') if isinstance(raw, str) else raw
    if not isinstance(raw, bytes):
        raise pickle.UnpicklingError(f'GLOBAL numpy.ndarray of {type(raw).__name__}')
    return raw


def _encoded(text: str, encoding: str = 'latin1') -> bytes:
    """Encode bytes as protocol 2 writes them; Python would look up any other codec by name."""
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError('GLOBAL _codecs.encode of another encoding')
    return str.encode(text, 'latin1')


def _statistic(owner: Any, name: str) -> str:
    """Stand for ``getattr``, which names the statistics of a history and needs no call."""
    if owner is not _History:
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return str(name)


def _plain_dict(items: Mapping | None = None) -> dict:
    return dict(items or {})


def _no_bytes() -> bytes:
    return b''


def _storage(raw: bytes) -> Any:
    """Read the numbers of a tensor: a file of ``torch.save`` within the pickle."""
    return load_torch(io.BytesIO(_bytes(raw)), 'cpu')


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError('GLOBAL torch._utils._rebuild_tensor_v2 without a storage')
    numbers = storage._untyped_storage  # untyped() would warn
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= numbers.nbytes() // storage.dtype.itemsize:
        raise ValueError('a tensor reaches beyond its numbers')
    return torch.empty(0, dtype=storage.dtype).set_(numbers, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


# The names of NumPy 1 and 2.
_ARRAY_NAMES: dict[str, Callable] = {
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray._reconstruct': _Array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
}
# What a file of torch.save may name beside what torch allows.
_TORCH_FILE_NAMES: dict[str, Callable] = {
    **_ARRAY_NAMES,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.config.config.ConfigDict': _plain_dict,
    'builtins.getattr': _statistic,
    'builtins.bytes': _no_bytes,
    'builtins.slice': slice,
}
_PICKLE_NAMES: dict[str, Callable] = {
    **_ARRAY_NAMES,
    'numpy.core.numeric._frombuffer': _array_from_buffer,
    'numpy._core.numeric._frombuffer': _array_from_buffer,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.storage._load_from_bytes': _storage,
    'collections.OrderedDict': _Dict,
    '_codecs.encode': _encoded,
}
_LOCK = threading.Lock()


def load_torch(file: BinaryIO, map_location: MapLocation = None) -> Any:
    """Read what ``torch.save`` wrote to ``file``, with arrays and histories of the real classes.

    Raises:
        pickle.UnpicklingError: The file names something that is not on the list; the message
            holds ``GLOBAL <name>``. Other errors of ``torch.load`` pass through.
    """
    # torch keeps one list of names per process. Ours takes its place during the call, so that
    # what other packages allowed does not count here, and our stand-ins do not count elsewhere.
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(s, name) for name, s in _TORCH_FILE_NAMES.items()])
        try:
            loaded = torch.load(file, map_location=map_location, weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)
    return _resolved(loaded, {})


def load_pickle(file: BinaryIO) -> Any:
    """Read a pickle of plain values, NumPy arrays and tensors, of any protocol and of Python 2.

    Raises:
        pickle.UnpicklingError: The file names something else; the message holds
            ``GLOBAL <name>``. Other errors of ``pickle`` on damaged files pass through.
    """
    # latin1 gives the text of Python 2 back as bytes, and changes no other file.
    return _resolved(_Unpickler(file, encoding='latin1').load(), {})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f'{module_name}.{global_name}'
        if name not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(f'GLOBAL {name}')
        return _CallOnly(_PICKLE_NAMES[name])


class _CallOnly:
    """A function that a pickle can call, and whose attributes it cannot set."""

    __slots__ = ('_function',)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError('GLOBAL with a state of its own')


def _resolved(value: Any, known: dict[int, Any]) -> Any:
    """Replace the stand-ins in ``value``; dicts and lists are changed in place, each once.

    Args:
        value: what a reader returned.
        known: what came of the dicts and lists that were met before, by ``id``.
    """
    if isinstance(value, _Array | _Dtype | _History):
        return value.resolve()
    if type(value) is tuple:
        return tuple(_resolved(item, known) for item in value)
    if not isinstance(value, dict | list):
        return value
    if id(value) not in known:
        result: Any = value.resolve() if isinstance(value, _Dict) else value
        known[id(value)] = result
        items = result.items() if isinstance(result, dict) else enumerate(result)
        for key, item in list(items):
            result[key] = _resolved(item, known)
    return known[id(value)]
