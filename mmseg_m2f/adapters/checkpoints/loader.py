"""Checkpoints in and out, in the place of MMEngine's own loader.

MMEngine 0.10.12 falls back to full unpickling when safe reading refuses a file, and so runs a
hostile one; 0.10.7 cannot read its own resume files on a current torch. Both ask their
``CheckpointLoader`` for every file (``load_from``, ``resume``, ``init_cfg``, ``init_model``,
inferencers, published checkpoints), and there `install_safe_loader` registers ours.
"""

import io
import logging
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend, load
from mmengine.logging import print_log
from mmengine.runner import (
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import Tensor

from mmseg_m2f.adapters.checkpoints.formats import Checkpoint, has_mark_of_torch, load_container
from mmseg_m2f.adapters.checkpoints.safe_pickle import File, MapLocation, is_plain_config

# What the readers raise on bytes that are no checkpoint, beside UnpicklingError.
_DAMAGED = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A file that asks for more than tensors and plain values; nothing of it was run."""


def read_checkpoint(
    file: File, map_location: MapLocation = None, name: str | None = None
) -> Checkpoint:
    """Reads a checkpoint without running anything from it.

    Args:
        file: A path, or an open binary file that can seek: what ``torch.save`` wrote, a pickle
            of NumPy arrays such as Detectron2's ``.pkl``, ``.safetensors``; or a folder of
            Hugging Face. The content decides, not the suffix.
        map_location: As in ``torch.load``.
        name: What to call the file in messages; its path by default.

    Returns:
        What was saved, under the names it was saved with. Bare weights, or those in ``model``,
        stand in ``state_dict`` beside ``meta``, as MMEngine expects. A config dict comes back as
        a plain dict. Config text in the meta that is more than plain values is left out, because
        MMEngine would run it (``Runner.resume``, inferencers without a config).

    Raises:
        UnsafeCheckpointError: The file names a function or class that is not on the list.
        CheckpointError: The file is damaged or no checkpoint.
        ImportError: The file needs safetensors, which is not installed.
    """
    name = name or str(file)
    try:
        checkpoint = load_container(file, name, map_location)
    except pickle.UnpicklingError as error:
        raise _refusal(file, name, str(error)) from error
    except torch.OutOfMemoryError:
        raise
    except _DAMAGED as error:
        raise CheckpointError(
            f'{name} cannot be read as a checkpoint (damaged, cut short, or another kind of '
            f'file?): {_first_line(error)}'
        ) from error
    _leave_out_programs(checkpoint, name)
    return checkpoint


def save_weights(
    weights: Mapping[str, Tensor], path: str | Path, meta: dict[str, Any] | None = None
) -> None:
    """Writes weights for publication: tensors and plain values, nothing to allow when loading.

    Args:
        weights: A model's ``state_dict``; saved on the CPU.
        path: Written whole or not at all.
        meta: Strings, numbers, booleans, None, and lists, tuples and dicts of them.

    Raises:
        TypeError: ``meta`` holds something else; the message says where.
    """
    meta = meta or {}
    check_plain(meta, 'meta')
    state = {key: value.detach().cpu().clone() for key, value in weights.items()}
    with written_whole(path) as part:
        torch.save({'meta': meta, 'state_dict': state}, part)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place if nothing goes wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_from_local(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Reads a file or folder of this machine, given as a path or as ``file://``."""
    path = Path(filename.removeprefix('file://')).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint file {path}')
    return read_checkpoint(path, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Downloads to torch's cache, where torch and MMEngine look as well, and reads from there."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(filename).path).name)
    if get_dist_info()[0] == 0:
        _download(filename, path)
    barrier()
    # The other machines of a job have a cache of their own.
    _download(filename, path)
    return read_checkpoint(path, map_location, name=f'{filename} ({path})')


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Resolves ``torchvision://resnet50`` and its like."""
    try:
        urls = get_torchvision_models()
    except ImportError:
        # It asks torchvision itself; the list that comes with MMEngine has the usual names.
        urls = load(Path(mmengine.__file__).with_name('hub') / 'torchvision_0.12.json')
    return _load_named(filename, urls, map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Resolves ``open-mmlab://`` names, renamed ones too."""
    models = get_external_models()
    for old, new in get_deprecated_model_names().items():
        if new in models:
            models[old] = models[new]
    return _load_named(filename, models, map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Resolves ``mmcls://`` names; of the classifier only the backbone is kept."""
    checkpoint = _load_named(filename, get_mmcls_models(), map_location)
    weights = checkpoint.get('state_dict', checkpoint)
    prefix = 'backbone.'
    kept = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return {'state_dict': kept}


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Reads ``s3://`` and ``petrel://`` through MMEngine's file back end."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    return read_checkpoint(io.BytesIO(backend.get(filename)), map_location, name=filename)


def load_from_pavi(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Refuses ``pavi://``, whose client is not public, rather than let MMEngine unpickle."""
    raise UnsafeCheckpointError(f'{filename}: fetch the file yourself and give its path')


SCHEMES: dict[tuple[str, ...], Callable[..., Checkpoint]] = {
    ('', 'file://'): load_from_local,
    ('http://', 'https://'): load_from_http,
    ('modelzoo://', 'torchvision://'): load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
    ('mmcls://',): load_from_mmcls,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_ceph,
    ('pavi://',): load_from_pavi,
}


def install_safe_loader() -> None:
    """Puts this loader in the place of MMEngine's for every address; may be called again."""
    for prefixes, loader in SCHEMES.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def _refusal(file: File, name: str, reason: str) -> CheckpointError:
    found = re.search(r'GLOBAL (\S+)(?: with fields)?', reason)
    if not found and not has_mark_of_torch(file):
        return CheckpointError(f'{name} is not a checkpoint: torch.save did not write it')
    asked = found.group().replace('GLOBAL', 'the name') if found else 'an unknown instruction'
    return UnsafeCheckpointError(
        f'{name} was refused and nothing of it was run: beside tensors and plain values it asks '
        f'for {asked}. If you trust its source, re-save it as tensors where it was made: '
        "torch.save(dict(state_dict=checkpoint['state_dict']), path)."
    )


def _leave_out_programs(checkpoint: Any, name: str) -> None:
    """Removes config text that is more than plain values: MMEngine runs it as Python."""
    if not isinstance(checkpoint, dict):
        return
    meta = checkpoint.get('meta')
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder, key in ((meta, 'config'), (meta, 'cfg'), (info, 'cfg')):
        if not isinstance(holder, dict):
            continue
        text = holder.get(key)
        if isinstance(text, str) and not is_plain_config(text):
            del holder[key]
            print_log(
                f'{name}: the config text in its meta ({key!r}) is more than plain values and '
                'was left out, since MMEngine may run it',
                logger='current',
                level=logging.WARNING,
            )


def _load_named(filename: str, urls: Mapping, map_location: MapLocation) -> Checkpoint:
    scheme, _, model = filename.partition('://')
    if model not in urls:
        raise ValueError(f'{scheme}:// has no model {model!r}, known are {sorted(urls)}')
    url = urls[model]
    if url.startswith(('http://', 'https://')):
        return load_from_http(url, map_location)
    cache = os.getenv('XDG_CACHE_HOME', os.path.join('~', '.cache'))
    home = os.getenv('MMENGINE_HOME', os.path.join(cache, 'mmengine'))
    return load_from_local(os.path.join(home, url), map_location)


def _download(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    print_log(f'downloading {url} to {path}', logger='current')
    torch.hub.download_url_to_file(url, str(path), progress=os.isatty(2))


def check_plain(value: Any, where: str) -> None:
    """Raises TypeError, with the place, if ``value`` holds more than plain values."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f'a key of {where}')
            check_plain(item, f'{where}[{key!r}]')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f'{where}[{index}]')
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f'{where} must be a plain value, got {type(value).__name__}')


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
