"""Write weights and the names of the classes as files of any known layout."""

import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.metadata.colors import voc_colors

HF_WEIGHTS, HF_CONFIG = 'model.safetensors', 'config.json'


def save_weights(
    weights: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any] | None = None
) -> None:
    """Write a ``.pth`` that ``torch.load(path, weights_only=True)`` reads.

    The file appears complete or not at all. ``weights`` are saved on the CPU. ``meta`` holds
    strings, numbers, booleans, None, and lists, tuples and dicts of them.

    Raises:
        TypeError: ``meta`` holds something else; the message says where.
    """
    meta = dict(meta or {})
    _check_plain(meta, 'meta')
    state = {key: value.detach().cpu().clone() for key, value in weights.items()}
    with _written_whole(Path(path)) as part:
        torch.save({'meta': meta, 'state_dict': state}, part)


def write_weights(
    weights: Mapping[str, Tensor], target: str, path: Path, dataset_meta: Mapping[str, Any]
) -> None:
    """Write weights as a file of the layout ``target``, complete or not at all.

    ``weights`` have the names of ``target``, one of `checkpoints.LAYOUTS`; ``dataset_meta`` is what
    `class_names` returns. A log line says so if the file has no place for it.

    Raises:
        CheckpointError: No ``config.json`` can be written beside the weights of Hugging Face.
    """
    if target in ('mmseg_m2f', 'mmdet', 'mmseg'):
        save_weights(weights, path, {'dataset_meta': dict(dataset_meta)} if dataset_meta else {})
        return
    if 'classes' in dataset_meta and (target != 'hf' or path.name != HF_WEIGHTS):
        print_log(f'{path} has no place for the names of the classes', logger='current')
    if target == 'hf':
        _write_huggingface(weights, path, dataset_meta.get('classes'))
        return
    # NumPy has no bfloat16.
    arrays = {
        key: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for key, value in weights.items()
    }
    content = {'model': arrays, '__author__': 'mmseg_m2f', 'matching_heuristics': True}
    with _written_whole(path) as part, part.open('wb') as opened:
        pickle.dump(content, opened, protocol=4)


def class_names(meta: Any, order: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the ``dataset_meta`` of a checkpoint in plain values, with lower-case keys.

    ``meta`` has ``dataset_meta``, or the ``CLASSES`` and ``PALETTE`` of the time before MMEngine.
    Classes without colors get some, because mmseg's drawing asks for them. What cannot be used is
    left out, and a warning names it. New class ``i`` is the old class ``order[i]``.
    """
    given = meta
    if isinstance(meta, dict):
        old = {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
        given = old if meta.get('dataset_meta') is None else meta['dataset_meta']
    names: dict[str, Any] = {}
    left_out = []
    if not isinstance(given, dict):
        left_out, given = ['everything (a dict is wanted)'] if given else [], {}
    for key, value in given.items():
        name = str(key).lower()
        by_class = name in ('classes', 'palette')
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
        if plain is None and by_class:
            continue
        if not _is_usable(name, plain):
            left_out.append(name)
        # The names of things and of stuff stay true in any order.
        elif order is None or name in ('thing_classes', 'stuff_classes'):
            names[name] = plain
        elif by_class and len(plain) == len(order):
            names[name] = [plain[index] for index in order]
        else:
            left_out.append(f'{name} (belongs to the old order)')
    if 'classes' in names:
        names.setdefault('palette', voc_colors(len(names['classes'])))
    if left_out:
        print_log(
            f'left out of what the checkpoint says about its classes: {", ".join(left_out)}. '
            'Wanted are a list of names, a list of colors of three numbers each, and plain values',
            logger='current',
            level=logging.WARNING,
        )
    return names


def _is_usable(name: str, value: Any) -> bool:
    try:
        _check_plain(value, name)
    except TypeError:
        return False
    is_list = isinstance(value, list | tuple) and len(value) > 0
    if name == 'classes':
        return is_list and all(isinstance(item, str) for item in value)
    if name == 'palette':
        return is_list and all(isinstance(c, list | tuple) and len(c) == 3 for c in value)
    return True


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError if ``value`` holds more than plain values; ``where`` names the place."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f'a key of {where}')
            _check_plain(item, f'{where}[{key!r}]')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f'{where}[{index}]')
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f'{where} must be a plain value, got {type(value).__name__}')


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if no error occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_huggingface(
    weights: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError('writing .safetensors needs: pip install safetensors') from error
    settings = _huggingface_config(weights, path, classes) if path.name == HF_WEIGHTS else None
    # safetensors refuses tensors that share memory or have gaps.
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    with _written_whole(path) as part:
        save_file(plain, part, metadata={'format': 'pt'})
        if settings is not None:
            # Both files are complete before the weights get their name.
            with _written_whole(path.with_name(HF_CONFIG)) as config_part:
                config_part.write_text(json.dumps(settings, indent=2) + '\n')


def _huggingface_config(
    weights: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> dict[str, Any]:
    other_name = f'Under another name than {HF_WEIGHTS} the weights are written without it'
    existing = path.with_name(HF_CONFIG)
    if existing.exists() and '"mask2former"' not in existing.read_text('utf-8', 'replace'):
        raise CheckpointError(f'{existing} exists and belongs to another model. {other_name}')
    try:
        return checkpoints.huggingface_config(weights, classes)
    except ValueError as error:
        raise CheckpointError(f'no {HF_CONFIG} can be written: {error}. {other_name}') from error
