"""Write weights as the files of the project whose names they have."""

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError

HF_WEIGHTS, HF_CONFIG = 'model.safetensors', 'config.json'


def save_weights(
    weights: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any] | None = None
) -> None:
    """Write a ``.pth`` that ``torch.load(path, weights_only=True)`` reads.

    Args:
        weights: A model's ``state_dict``; it is saved on the CPU.
        path: where to write. The file appears complete or not at all.
        meta: strings, numbers, booleans, None, and lists, tuples and dicts of them.

    Raises:
        TypeError: ``meta`` holds something else; the message says where.
    """
    meta = dict(meta or {})
    check_plain(meta, 'meta')
    state = {key: value.detach().cpu().clone() for key, value in weights.items()}
    with written_whole(path) as part:
        torch.save({'meta': meta, 'state_dict': state}, part)


def write_weights(
    weights: Mapping[str, Tensor], target: str, path: Path, dataset_meta: Mapping[str, Any]
) -> None:
    """Write weights as a file of the layout ``target``.

    Args:
        weights: tensors under the names of ``target``.
        target: one of `checkpoints.LAYOUTS`.
        path: where to write, with the suffix of ``target``. The file appears complete or not at
            all.
        dataset_meta: what `class_names` returns. A log line says so if the file has no place for
            it.

    Raises:
        CheckpointError: No ``config.json`` can be written beside the weights of Hugging Face.
        ImportError: safetensors is needed and is not installed.
    """
    if target in ('mmseg_m2f', 'mmdet', 'mmseg'):
        save_weights(weights, path, {'dataset_meta': dict(dataset_meta)} if dataset_meta else {})
        return
    if 'classes' in dataset_meta and (target != 'hf' or path.name != HF_WEIGHTS):
        print_log(f'{path} has no place for the names of the classes', logger='current')
    # safetensors refuses tensors that share memory or have gaps.
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    if target == 'hf':
        _write_huggingface(plain, path, dataset_meta.get('classes'))
        return
    with written_whole(path) as part:
        _write_detectron2(plain, part)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if no error occurs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_plain(value: Any, where: str) -> None:
    """Check that ``value`` holds plain values only; ``where`` names it in the message.

    Raises:
        TypeError: It holds something else.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f'a key of {where}')
            check_plain(item, f'{where}[{key!r}]')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f'{where}[{index}]')
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f'{where} must be a plain value, got {type(value).__name__}')


def _write_huggingface(
    weights: dict[str, Tensor], path: Path, classes: Sequence[str] | None
) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError('writing .safetensors needs: pip install safetensors') from error
    if path.name != HF_WEIGHTS:
        with written_whole(path) as part:
            save_file(weights, part, metadata={'format': 'pt'})
        return
    config = _huggingface_config(weights, path, classes)
    # Both files are complete before either gets its name.
    with written_whole(path) as part, written_whole(path.with_name(HF_CONFIG)) as config_part:
        config_part.write_text(json.dumps(config, indent=2) + '\n')
        save_file(weights, part, metadata={'format': 'pt'})


def _huggingface_config(
    weights: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> dict[str, Any]:
    existing = path.with_name(HF_CONFIG)
    if existing.exists() and not _is_mask2former_config(existing):
        raise CheckpointError(
            f'{existing} exists and belongs to another model. Write to a folder of its own, or '
            f'under another name than {HF_WEIGHTS}: then no {HF_CONFIG} is written'
        )
    try:
        return checkpoints.huggingface_config(weights, classes)
    except ValueError as error:
        raise CheckpointError(
            f'no {HF_CONFIG} can be written: {error}. To get the weights without it, write them '
            f'under another name than {HF_WEIGHTS}'
        ) from error


def _is_mask2former_config(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return False
    return isinstance(content, dict) and content.get('model_type') == 'mask2former'


def _write_detectron2(weights: Mapping[str, Tensor], path: Path) -> None:
    """Pickle NumPy arrays, as Detectron2 reads them."""
    arrays = {
        # NumPy has no bfloat16.
        key: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for key, value in weights.items()
    }
    content = {'model': arrays, '__author__': 'mmseg_m2f', 'matching_heuristics': True}
    with open(path, 'wb') as opened:
        pickle.dump(content, opened, protocol=4)
