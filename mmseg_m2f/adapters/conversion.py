"""Checkpoint files from one project to another."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoint_io import (
    CheckpointError,
    check_plain,
    save_weights,
    written_whole,
)
from mmseg_m2f.adapters.loading import check, fit, head_name, load_rules

SUFFIXES = {'mmseg_m2f': '.pth', 'detectron2': '.pkl', 'mmdet': '.pth', 'mmseg': '.pth'}
SUFFIXES['hf'] = '.safetensors'
ORDERS = ('things-first', 'official')
HF_WEIGHTS, HF_CONFIG = 'model.safetensors', 'config.json'

# Of a checkpoint of OpenMMLab, what is true of its weights under any names.
_KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE')


class Conversion(NamedTuple):
    """What was converted: the layout that was found, and how many tensors were written where."""

    layout: str
    target: str
    num_tensors: int
    path: Path


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    config: str | Path | Config | None = None,
    source: str = 'auto',
    target: str = 'mmseg_m2f',
    min_matched: float = 0.95,
    reorder: str | Sequence[int] | None = None,
) -> Conversion:
    """Writes the weights of ``src`` under the names of ``target``, whole or not at all.

    Args:
        src: a file, a folder of Hugging Face, or an address MMEngine knows.
        dst: ``.pkl`` for Detectron2, ``.safetensors`` for Hugging Face, else ``.pth``. Beside a
            ``model.safetensors`` the ``config.json`` is written that ``from_pretrained`` reads.
        config: of a model with one of our heads that the weights have to fit: as many classes, and
            in each module at least ``min_matched`` of the tensors, which is logged. Its head's
            name is taken if ``target`` is ours.
        source: the layout of ``src``: ``auto``, or one of `checkpoints.LAYOUTS` or, for backbones,
            `checkpoints.BACKBONE_LAYOUTS`.
        target: one of `checkpoints.LAYOUTS`; a backbone alone can become ours only.
        min_matched: in [0, 1].
        reorder: the new order of the classes, as their old indices; or by the ``thing_ids`` of a
            config in the official order ``things-first``, from there to the order of mmdet's
            panoptic data sets, or ``official``, the way back.

    Raises:
        CheckpointError: ``src`` is no checkpoint, or its weights do not fit the target.
        ValueError: wrong arguments.
    """
    _check_arguments(dst, source, target, reorder, config)
    checkpoint = CheckpointLoader.load_checkpoint(os.fspath(src), map_location='cpu')
    stored = _weights_of(checkpoint, src)
    model = None if config is None else _build(config)
    try:
        layout = _layout(stored, source)
        head = _head_for(target, stored) if model is None else head_name(model)
        weights = checkpoints.to_ours(stored, layout, head)
        if reorder is not None:
            weights = checkpoints.reorder_classes(weights, _order(reorder, model))
        written = checkpoints.to_theirs(weights, target)
    except ValueError as error:
        raise CheckpointError(f'{src} cannot be converted: {error}') from error
    if model is not None:
        _check_fit(model, weights, min_matched)
    # The names of the classes are in the old order.
    meta = {} if reorder else _plain_meta(checkpoint.get('meta') or {})
    _write(written, target, Path(dst), meta)
    return Conversion(layout, target, len(written), Path(dst))


def _check_arguments(dst: str | Path, source: str, target: str, reorder: Any, config: Any) -> None:
    known = ('auto', *checkpoints.LAYOUTS, *checkpoints.BACKBONE_LAYOUTS)
    if source not in known:
        raise ValueError(f'the source must be one of {", ".join(known)}, got {source!r}')
    if target not in SUFFIXES:
        raise ValueError(f'the target must be one of {", ".join(SUFFIXES)}, got {target!r}')
    if Path(dst).suffix != SUFFIXES[target]:
        raise ValueError(f'files of {target} end in {SUFFIXES[target]}, got {os.fspath(dst)!r}')
    if isinstance(reorder, str) and reorder not in ORDERS:
        raise ValueError(f'reorder must be one of {", ".join(ORDERS)}, got {reorder!r}')
    if isinstance(reorder, str) and config is None:
        raise ValueError(f'{reorder} needs a config: the thing_ids of its head say what a thing is')


def _weights_of(checkpoint: Any, src: str | Path) -> dict[str, Tensor]:
    weights = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f'{src} holds no weights: neither state_dict nor model')
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f'{src} holds no weights: its state_dict has {type(value).__name__} under {key!r}, '
                'where names of tensors and tensors are wanted'
            )
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _layout(stored: Mapping[str, Tensor], source: str) -> str:
    """The layout the names tell; ``source`` may only say which of two with the same names."""
    found = checkpoints.detect_layout(stored)
    # An older timm file has the names of torchvision's or Microsoft's.
    same = source == 'timm' and found in checkpoints.BACKBONE_LAYOUTS
    if source in ('auto', found) or same:
        return found if source == 'auto' else source
    raise ValueError(f'its names are those of {found}, not of {source}')


def _build(config: str | Path | Config) -> nn.Module:
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if 'model' not in cfg:
        raise ValueError(f'{config} has no model')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model)
    head_name(model)
    return model


def _head_for(target: str, stored: Mapping[str, Tensor]) -> str:
    """The head's name without a config; loading takes either."""
    if target == 'mmdet' or (
        target != 'mmseg' and any(key.startswith('panoptic_head.') for key in stored)
    ):
        return 'panoptic_head'
    return 'decode_head'


def _order(reorder: str | Sequence[int], model: nn.Module | None) -> Sequence[int]:
    if not isinstance(reorder, str):
        return reorder
    head = getattr(model, head_name(model)) if model is not None else None
    is_thing = getattr(head, 'is_thing', None)
    if is_thing is None:
        raise ValueError(f'{reorder} needs the config of a model with things and stuff')
    order = checkpoints.things_first(is_thing.nonzero().flatten().tolist(), len(is_thing))
    return order if reorder == 'things-first' else [order.index(i) for i in range(len(order))]


def _check_fit(model: nn.Module, weights: dict[str, Tensor], min_matched: float) -> None:
    with load_rules(min_matched=min_matched, other_classes=False):
        if any(key.startswith(f'{head_name(model)}.') for key in weights):
            fit(model, weights)
        else:
            expected = model.state_dict()
            check({key: expected[key] for key in expected if key.startswith('backbone.')}, weights)


def _plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key in _KEPT_META:
        with suppress(TypeError, KeyError):
            check_plain(meta[key], key)
            kept[key] = meta[key]
    return kept


def _write(weights: Mapping[str, Tensor], target: str, path: Path, meta: dict[str, Any]) -> None:
    if target in ('mmseg_m2f', 'mmdet', 'mmseg'):
        save_weights(weights, path, meta)
        return
    # Neither shares memory nor leaves gaps: safetensors would refuse it.
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    if target == 'hf':
        _write_huggingface(plain, path, meta)
        return
    with written_whole(path) as part:
        _pickle_arrays(plain, part)


def _write_huggingface(weights: Mapping[str, Tensor], path: Path, meta: Mapping[str, Any]) -> None:
    """The weights, and beside ``model.safetensors`` the settings."""
    save = _safetensors_writer()
    if path.name != HF_WEIGHTS:
        with written_whole(path) as part:
            save(weights, part, metadata={'format': 'pt'})
        return
    config = _huggingface_config(weights, path, meta)
    # Both are there in full before either takes its place.
    with written_whole(path) as part, written_whole(path.with_name(HF_CONFIG)) as config_part:
        config_part.write_text(json.dumps(config, indent=2) + '\n')
        save(weights, part, metadata={'format': 'pt'})


def _huggingface_config(
    weights: Mapping[str, Tensor], path: Path, meta: Mapping[str, Any]
) -> dict[str, Any]:
    there = path.with_name(HF_CONFIG)
    if there.exists() and not _is_mask2former_config(there):
        raise CheckpointError(
            f'{there} is there and is not of a Mask2Former: write to a folder of its own, or under '
            f'another name than {HF_WEIGHTS}, to which no {HF_CONFIG} is written'
        )
    classes = meta.get('dataset_meta', {}).get('classes')
    try:
        return checkpoints.huggingface_config(weights, classes)
    except ValueError as error:
        raise CheckpointError(f'no {HF_CONFIG} can be written: {error}') from error


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
