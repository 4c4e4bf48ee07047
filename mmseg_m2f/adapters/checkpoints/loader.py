"""Read checkpoints in place of MMEngine's own loader.

MMEngine 0.10.12 falls back to full unpickling when safe reading refuses a file, and so runs a
hostile one; 0.10.7 cannot read its own resume files with a current torch. Both ask
``CheckpointLoader`` for every file (``load_from``, ``resume``, ``init_cfg``, ``init_model``,
inferencers, published checkpoints). `install_safe_loader` registers our readers there. For models
of other packages the content of a file stays what it was.
"""

import io
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
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

from mmseg_m2f.adapters.checkpoints.config_text import leave_out_programs
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError, UnsafeCheckpointError
from mmseg_m2f.adapters.checkpoints.formats import (
    Checkpoint,
    File,
    read_file,
    weights_of,
)
from mmseg_m2f.adapters.checkpoints.safe_pickle import MapLocation

# What the readers raise for bytes that are no checkpoint, beside UnpicklingError.
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


def read_checkpoint(
    file: File, map_location: MapLocation = None, name: str | None = None
) -> Checkpoint:
    """Read a checkpoint without running anything from it.

    Args:
        file: A path, or an open binary file that can seek. It is what ``torch.save`` wrote, a
            pickle of arrays or tensors such as Detectron2's ``.pkl``, ``.safetensors``, or a
            folder of Hugging Face. The content decides, not the suffix.
        map_location: as in ``torch.load``.
        name: what to call the file in messages; its path by default.

    Returns:
        What ``torch.save`` saved, with the keys it was saved with; `weights_of` finds the weights.
        The other kinds have no keys of their own and give ``state_dict`` and ``meta``. A config
        dict comes back as a plain dict. Config text that is more than plain values is left out.

    Raises:
        UnsafeCheckpointError: The file names a function or class that is not on the list.
        CheckpointError: The file is damaged or no checkpoint.
        ImportError: The file needs safetensors, which is not installed.
    """
    name = name or str(file)
    try:
        checkpoint = read_file(file, name, map_location)
    except pickle.UnpicklingError as error:
        raise _refusal(name, str(error)) from error
    except torch.OutOfMemoryError:
        raise
    except _DAMAGED as error:
        raise CheckpointError(
            f'{name} cannot be read as a checkpoint (damaged, cut short, or another kind of '
            f'file?): {_first_line(error)}'
        ) from error
    leave_out_programs(checkpoint, name)
    return checkpoint


def load_from_local(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read a file or folder of this machine, given as a path or as ``file://``."""
    path = Path(filename.removeprefix('file://')).expanduser()
    if re.match(r'[\w+.-]+://', filename.removeprefix('file://')):
        return load_from_unknown(filename, map_location)
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint file {path}')
    return read_checkpoint(path, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Download to torch's cache, where torch and MMEngine look as well, and read from there."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(filename).path).name)
    if get_dist_info()[0] == 0:
        _download(filename, path)
    barrier()
    # The other machines of a job have a cache of their own.
    _download(filename, path)
    return read_checkpoint(path, map_location, name=f'{filename} ({path})')


def load_named(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read a model by its name in MMEngine's lists, such as ``torchvision://resnet50``.

    Only the backbone of a classifier of ``mmcls://`` is kept.
    """
    scheme, _, model = filename.partition('://')
    urls = _model_urls(scheme)
    if model not in urls:
        raise ValueError(f'{scheme}:// has no model {model!r}, known are {sorted(urls)}')
    url = urls[model]
    if url.startswith(('http://', 'https://')):
        checkpoint = load_from_http(url, map_location)
    else:
        cache = os.getenv('XDG_CACHE_HOME', os.path.join('~', '.cache'))
        home = os.getenv('MMENGINE_HOME', os.path.join(cache, 'mmengine'))
        checkpoint = load_from_local(os.path.join(home, url), map_location)
    if scheme != 'mmcls':
        return checkpoint
    prefix, weights = 'backbone.', weights_of(checkpoint, filename)
    kept = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return {'state_dict': kept}


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read ``s3://`` and ``petrel://`` through MMEngine's file back end."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    return read_checkpoint(io.BytesIO(backend.get(filename)), map_location, name=filename)


def load_from_unknown(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Refuse an address that we cannot read; MMEngine's own reader would unpickle the file.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(
        f'{filename} is no address that can be read. Readable are paths, file://, http://, '
        'https://, torchvision://, open-mmlab://, mmcls:// and s3://. Download the file and give '
        'its path'
    )


SCHEMES: dict[tuple[str, ...], Callable[..., Checkpoint]] = {
    ('', 'file://'): load_from_local,
    ('http://', 'https://'): load_from_http,
    ('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://'): load_named,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_ceph,
}


def install_safe_loader() -> None:
    """Register our readers with MMEngine for every address; may be called again."""
    for prefixes, loader in SCHEMES.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
    # MMEngine knows addresses that we do not, such as pavi://.
    for prefix, loader in CheckpointLoader._schemes.items():
        if loader.__module__.startswith('mmengine.'):
            CheckpointLoader.register_scheme(prefix, load_from_unknown, force=True)


def _refusal(name: str, reason: str) -> UnsafeCheckpointError:
    found = re.search(r'GLOBAL (\S+)(?: with fields)?', reason)
    asked = found.group().replace('GLOBAL', 'the name') if found else 'an unknown instruction'
    return UnsafeCheckpointError(
        f'{name} was refused and nothing of it was run: beside tensors and plain values it asks '
        f'for {asked}. If you trust its source, re-save it as tensors where it was made: '
        "torch.save({'state_dict': model.state_dict()}, path)"
    )


def _model_urls(scheme: str) -> Mapping[str, str]:
    if scheme == 'mmcls':
        return get_mmcls_models()
    if scheme in ('open-mmlab', 'openmmlab'):
        models = get_external_models()
        renamed = get_deprecated_model_names()
        return models | {old: models[new] for old, new in renamed.items() if new in models}
    try:
        return get_torchvision_models()
    except ImportError:
        # torchvision is not installed; the list that comes with MMEngine has the usual names.
        return load(Path(mmengine.__file__).with_name('hub') / 'torchvision_0.12.json')


def _download(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    print_log(f'downloading {url} to {path}', logger='current')
    torch.hub.download_url_to_file(url, str(path), progress=os.isatty(2))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
