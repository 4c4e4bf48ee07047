"""Weights as the files of the project whose names they have."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.loader import CheckpointError, save_weights, written_whole

HF_WEIGHTS, HF_CONFIG = 'model.safetensors', 'config.json'


def write_weights(
    weights: Mapping[str, Tensor], target: str, path: Path, named: dict[str, Any]
) -> None:
    """Writes weights under the names of ``target``, whole or not at all.

    Args:
        weights: under those names already.
        target: one of `checkpoints.LAYOUTS`.
        path: of the suffix that belongs to it.
        named: what `class_names` gives; where there is no place for it, that is logged.

    Raises:
        CheckpointError: no ``config.json`` can be written beside Hugging Face's weights.
        ImportError: safetensors is needed and not installed.
    """
    if target in ('mmseg_m2f', 'mmdet', 'mmseg'):
        save_weights(weights, path, {'dataset_meta': named} if named else {})
        return
    if 'classes' in named and (target != 'hf' or path.name != HF_WEIGHTS):
        print_log(f'{path} has no place for the names of the classes', logger='current')
    # Neither shares memory nor leaves gaps: safetensors would refuse it.
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    if target == 'hf':
        _write_huggingface(plain, path, named.get('classes'))
        return
    with written_whole(path) as part:
        _pickle_arrays(plain, part)


def _write_huggingface(
    weights: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> None:
    """The weights, and beside ``model.safetensors`` the settings."""
    save = _safetensors_writer()
    if path.name != HF_WEIGHTS:
        with written_whole(path) as part:
            save(weights, part, metadata={'format': 'pt'})
        return
    config = _huggingface_config(weights, path, classes)
    # Both are there in full before either takes its place.
    with written_whole(path) as part, written_whole(path.with_name(HF_CONFIG)) as config_part:
        config_part.write_text(json.dumps(config, indent=2) + '\n')
        save(weights, part, metadata={'format': 'pt'})


def _huggingface_config(
    weights: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> dict[str, Any]:
    there = path.with_name(HF_CONFIG)
    if there.exists() and not _is_mask2former_config(there):
        raise CheckpointError(
            f'{there} is there and is not of a Mask2Former: write to a folder of its own, or under '
            f'another name than {HF_WEIGHTS}, to which no {HF_CONFIG} is written'
        )
    try:
        return checkpoints.huggingface_config(weights, classes)
    except ValueError as error:
        raise CheckpointError(
            f'no {HF_CONFIG} can be written: {error}. To have the weights without it, write them '
            f'under another name than {HF_WEIGHTS}'
        ) from error


def _is_mask2former_config(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get('model_type') == 'mask2former'


def _pickle_arrays(weights: Mapping[str, Tensor], path: Path) -> None:
    """As Detectron2 reads it; NumPy lacks bfloat16."""
    arrays = {
        key: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for key, value in weights.items()
    }
    content = {'model': arrays, '__author__': 'mmseg_m2f', 'matching_heuristics': True}
    with open(path, 'wb') as opened:
        pickle.dump(content, opened, protocol=4)


def _safetensors_writer() -> Any:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError('writing .safetensors needs: pip install safetensors') from error
    return save_file
