"""Reads pickles of NumPy arrays, Detectron2's published ``.pkl`` among them, as data only.

Unpickling is a small program whose words are "look up a name", "call it" and "set its state".
Here every name is a stand-in that builds numbers, whatever the file asks for, and a stand-in has
no state to set. Files of Python 2 work as well: their bytes were text, read back as latin1.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

from mmseg_m2f.adapters.checkpoints import safe_pickle as plain_pickle


class _StandIn:
    """A name in the file; it can be called and nothing else."""

    __slots__ = ('_function',)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError('GLOBAL with a state of its own')


def _encoded(text: str, encoding: str = 'latin1') -> bytes:
    """How protocol 2 writes bytes; any other codec would be looked up by name."""
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError('GLOBAL _codecs.encode of another encoding')
    return str.encode(text, 'latin1')


def _from_buffer(buffer: bytes, dtype: Any, shape: tuple, order: str) -> Any:
    """How protocol 5 writes arrays."""
    array = plain_pickle.ARRAY_NAMES['numpy.ndarray']()
    array.__setstate__((1, shape, dtype, order == 'F', bytes(buffer)))
    return array


_NAMES: dict[str, Callable] = {
    **plain_pickle.ARRAY_NAMES,
    'numpy.core.numeric._frombuffer': _from_buffer,
    'numpy._core.numeric._frombuffer': _from_buffer,
    'collections.OrderedDict': plain_pickle.plain_dict,
    '_codecs.encode': _encoded,
}
_STAND_INS: Mapping[str, _StandIn] = {name: _StandIn(part) for name, part in _NAMES.items()}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f'{module_name}.{global_name}'
        if name not in _STAND_INS:
            raise pickle.UnpicklingError(f'GLOBAL {name}')
        return _STAND_INS[name]


def load_arrays(file: BinaryIO) -> Any:
    """What was pickled into ``file``: plain values and NumPy arrays.

    Raises:
        pickle.UnpicklingError: It names something else; the message holds ``GLOBAL <name>``. Other
            errors of ``pickle`` on damaged files pass through.
    """
    return plain_pickle.resolved(_Reader(file, encoding='latin1').load())
