"""Read pickles as data, never as programs.

A pickle is a small program: look up a name, call it, set its state. Here every name stands for a
function or class of ours that builds numbers, dicts and strings, whatever the file asks for. All
other names are refused. `load_torch` gives torch's own restricted reader a list of further names,
for the arrays and histories in MMEngine's resume files; `load_pickle` reads every other pickle.

The real things behind the names are not harmless. ``getattr`` is on MMEngine's own list, and from
it any function is in reach through a rebuild function on torch's list. ``numpy.dtype`` takes its
flags from the pickle, so a file may declare bytes to be pointers.
"""

import io
import pickle
import re
import threading
from collections.abc import Callable
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
        if self.order == '<':
            return dtype.newbyteorder('<')
        if self.order == '>':
            return dtype.newbyteorder('>')
        return dtype.newbyteorder('=')


class _Later:
    """Stand for an object that is built from its state once the whole file has been read."""

    state: Any = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Later):
    """Stand for ``numpy.ndarray``, and for the call that makes an empty one."""

    def resolve(self) -> np.ndarray:
        _version, shape, dtype, is_fortran, raw = self.state
        # NumPy checks the size of the buffer against the shape; the copy owns its memory.
        values: np.ndarray = np.ndarray(
            shape, dtype.resolve(), buffer=_bytes(raw), order='F' if is_fortran else 'C'
        )
        return values.copy('K')


class _History(_Later):
    """Stand for MMEngine's ``HistoryBuffer``: the numbers, with the default statistics."""

    def resolve(self) -> HistoryBuffer:
        log, counts, length = map(self.state.get, ('_log_history', '_count_history', 'max_length'))
        return HistoryBuffer(_resolved(log, set()), _resolved(counts, set()), int(length))


class _Dict(dict):
    """Stand for ``OrderedDict``, whose attributes (a module's ``_metadata``) are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


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


# The names of NumPy 1 and 2.
_ARRAY_NAMES: dict[str, Callable] = {
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    **{f'numpy.{core}.multiarray._reconstruct': _Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}
# What a file of torch.save may name beside what torch allows.
_TORCH_FILE_NAMES: dict[str, Callable] = {
    **_ARRAY_NAMES,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.config.config.ConfigDict': lambda items=None: dict(items or {}),
    'builtins.getattr': _statistic,
    'builtins.bytes': lambda: b'',
    'builtins.slice': slice,
}
_PICKLE_NAMES: dict[str, Callable] = {
    **_ARRAY_NAMES,
    'numpy.core.numeric._frombuffer': _array_from_buffer,
    'numpy._core.numeric._frombuffer': _array_from_buffer,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': lambda data, *_: data,
    'torch.storage._load_from_bytes': _storage,
    'collections.OrderedDict': _Dict,
    '_codecs.encode': _encoded,
}
_LOCK = threading.Lock()


def load_torch(file: BinaryIO, map_location: MapLocation = None) -> Any:
    """Read what ``torch.save`` wrote to ``file``, with arrays and histories of the real classes.

    Raises:
        pickle.UnpicklingError: With ``GLOBAL <name>``, if the file names what is not on the list.
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
    return _resolved(loaded, set())


def load_pickle(file: BinaryIO) -> Any:
    """Read a pickle of plain values, NumPy arrays and tensors, of any protocol and of Python 2.

    Raises:
        pickle.UnpicklingError: With ``GLOBAL <name>``, if the file names something else.
    """
    # latin1 gives the text of Python 2 back as bytes, and changes no other file.
    return _resolved(_Unpickler(file, encoding='latin1').load(), set())


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


def _resolved(value: Any, seen: set[int]) -> Any:
    """Replace the stand-ins in ``value``; dicts and lists not yet ``seen`` are changed in place."""
    if isinstance(value, _Array | _Dtype | _History):
        return value.resolve()
    if type(value) is tuple:
        return tuple(_resolved(item, seen) for item in value)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        items: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            value[key] = _resolved(item, seen)
    return value
