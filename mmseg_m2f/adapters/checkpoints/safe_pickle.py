"""Reads what ``torch.save`` wrote as data, never as a program.

``torch.load(weights_only=True)`` reads tensors and plain values. MMEngine's resume files hold
more, NumPy arrays and logged histories, so a list of further names is needed. Each name is bound
to a stand-in that can only build numbers, never to the real thing, because the real things are
not harmless:

* ``getattr`` is on MMEngine's list, and from it, through a rebuild function on torch's own list,
  any function is in reach. Its only use, the statistics of a ``HistoryBuffer``, needs no call.
* ``numpy.dtype`` takes its flags from the pickle, so a file may declare bytes to be pointers.
"""

import ast
import pickle
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

MapLocation = str | torch.device | Callable | dict | None
File = str | Path | BinaryIO


class _PlainDtype:
    """Stands for ``numpy.dtype``: numbers, booleans and strings, no objects and no fields."""

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


class _PlainArray:
    """Stands for ``numpy.ndarray`` until the file is read."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def resolve(self) -> np.ndarray:
        _version, shape, dtype, is_fortran, raw = self.state
        # The buffer's size is checked against the shape, and the copy owns its memory.
        values: np.ndarray = np.ndarray(
            shape, dtype.resolve(), buffer=_raw(raw), order='F' if is_fortran else 'C'
        )
        return values.copy('K')


class _History:
    """Stands for MMEngine's ``HistoryBuffer``: the numbers, with the default statistics."""

    def __init__(self) -> None:
        self.state: dict = {}

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def resolve(self) -> HistoryBuffer:
        values, counts = (
            _resolved(self.state[key], set()) for key in ('_log_history', '_count_history')
        )
        return HistoryBuffer(values, counts, max_length=int(self.state['max_length']))


def _new_array(*_: Any) -> _PlainArray:
    return _PlainArray()


def _scalar(dtype: _PlainDtype, raw: bytes) -> Any:
    return np.ndarray((), dtype.resolve(), buffer=_raw(raw))[()]


def _raw(raw: bytes | str) -> bytes:
    # Python 2 had one type for both.
    raw = raw.encode('latin1') if isinstance(raw, str) else raw
    if not isinstance(raw, bytes):
        raise pickle.UnpicklingError(f'GLOBAL numpy.ndarray of {type(raw).__name__}')
    return raw


def _statistic(owner: Any, name: str) -> str:
    if owner is not _History:
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return str(name)


def plain_dict(items: Mapping | None = None) -> dict:
    """In the place of dictionaries with more to them."""
    return dict(items or {})


def _no_bytes() -> bytes:
    return b''


# NumPy's names, of 1.x and 2.x.
ARRAY_NAMES: dict[str, Callable] = {
    'numpy.dtype': _PlainDtype,
    'numpy.ndarray': _PlainArray,
    'numpy.core.multiarray._reconstruct': _new_array,
    'numpy._core.multiarray._reconstruct': _new_array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
}
# What a file may name beyond torch's own list: NumPy's names and MMEngine's.
ALLOWED: list[Callable | tuple[Callable, str]] = [
    *((stand_in, name) for name, stand_in in ARRAY_NAMES.items()),
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_statistic, 'builtins.getattr'),
    (plain_dict, 'mmengine.config.config.ConfigDict'),
    (_no_bytes, 'builtins.bytes'),
    (slice, 'builtins.slice'),
]
_LOCK = threading.Lock()


def load_plain(file: File, map_location: MapLocation = None) -> Any:
    """What was saved in ``file``, with arrays and histories as NumPy's and MMEngine's.

    Raises:
        pickle.UnpicklingError: It names something that is not on the list; the message holds
            ``GLOBAL <name>``. Other errors of ``torch.load`` pass through.
    """
    # torch keeps one list per process. Ours replaces it for the time of the call, so what other
    # packages put there does not count, and other loads do not see our stand-ins.
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(ALLOWED)
        try:
            loaded = torch.load(file, map_location=map_location, weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)
    return resolved(loaded)


def resolved(value: Any) -> Any:
    """``value`` with arrays and histories in the place of their stand-ins."""
    return _resolved(value, set())


def _resolved(value: Any, seen: set[int]) -> Any:
    """``value`` without stand-ins; dicts and lists are changed in place, each once."""
    if isinstance(value, _PlainArray | _PlainDtype | _History):
        return value.resolve()
    if type(value) is tuple:
        return tuple(_resolved(item, seen) for item in value)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            value[key] = _resolved(item, seen)
    return value


def is_plain_config(text: str) -> bool:
    """Whether config text only assigns plain values, so that running it does nothing else."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_plain_assignment(statement) for statement in body)


def _is_plain_assignment(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) > 1:
        return False
    target = statement.targets[0]
    # A base is a file that would be run as well; a saved config has none left.
    if not isinstance(target, ast.Name) or target.id == '_base_':
        return False
    return all(_is_plain_node(node) for node in ast.walk(statement.value))


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and not node.args
    if isinstance(node, ast.Name):
        return node.id == 'dict'
    literals = (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub)
    return isinstance(node, (*literals, ast.keyword, ast.expr_context))
