"""Read checkpoints in place of MMEngine's own loader.

MMEngine 0.10.12 falls back to full unpickling when safe reading refuses a file, and so runs a
hostile one; 0.10.7 cannot read its own resume files with a current torch. Both ask
``CheckpointLoader`` for every file (``load_from``, ``resume``, ``init_cfg``, ``init_model``,
inferencers, published checkpoints). `install_safe_loader` registers our readers there. For models
of other packages the content of a file stays what it was.
"""

import ast
import io
import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend, load
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as theirs

from mmseg_m2f.adapters.checkpoints.errors import CheckpointError, UnsafeCheckpointError
from mmseg_m2f.adapters.checkpoints.formats import Checkpoint, File, read_file, weights_of
from mmseg_m2f.adapters.checkpoints.safe_pickle import MapLocation

_LITERALS = (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub)


def read_checkpoint(
    file: File, map_location: MapLocation = None, name: str | None = None
) -> Checkpoint:
    """Read a checkpoint without running anything from it.

    What ``torch.save`` wrote keeps its keys; `weights_of` finds the weights. Pickles of arrays or
    tensors, ``.safetensors`` and folders of Hugging Face give ``state_dict`` and ``meta``. The
    content decides, not the suffix. A config dict comes back as a plain dict. Config text that is
    more than plain values is left out.

    Args:
        file: A path, or an open binary file that can seek.
        map_location: as in ``torch.load``, for its files; the other kinds stay on the CPU.
        name: what to call the file in messages; its path by default.

    Raises:
        UnsafeCheckpointError: The file names a function or class that is not on the list.
        CheckpointError: The file is damaged or no checkpoint.
    """
    name = name or str(file)
    try:
        checkpoint = read_file(file, name, map_location)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+(?: with fields)?)', str(error))
        asked = f'the name {found[1]}' if found else 'an unknown instruction'
        raise UnsafeCheckpointError(
            f'{name} was refused and nothing of it was run: beside tensors and plain values it '
            f'asks for {asked}. If you trust its source, re-save it as tensors where it was made: '
            "torch.save({'state_dict': model.state_dict()}, path)"
        ) from error
    except (ImportError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the readers raise for bytes that are no checkpoint
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'{name} cannot be read as a checkpoint (damaged, cut short, or another kind of '
            f'file?): {reason}'
        ) from error
    _leave_out_programs(checkpoint, name)
    return checkpoint


def _leave_out_programs(checkpoint: Any, name: str) -> None:
    """Remove config text that does more than assign plain values; a warning says so.

    ``Runner.resume`` and inferencers without a config run such text.
    """
    if not isinstance(checkpoint, dict):
        return
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder, key in ((meta, 'config'), (meta, 'cfg'), (info, 'cfg')):
        if not isinstance(holder, dict):
            continue
        if isinstance(text := holder.get(key), str) and not _is_plain_config(text):
            del holder[key]
            text = f'{name}: left out the config text under {key!r}, which MMEngine may run'
            print_log(text, logger='current', level=logging.WARNING)


def _is_plain_config(text: str) -> bool:
    """Return True if config text only assigns plain values, so that running it does no more."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for statement in statements:
        match statement:
            # A base is a file that would be run as well; a saved config has none left.
            case ast.Assign([ast.Name(name)], value) if name != '_base_' and _is_plain(value):
                pass
            case _:
                return False
    return True


def _is_plain(value: ast.expr) -> bool:
    for node in ast.walk(value):
        match node:
            case ast.Call(ast.Name('dict'), []) | ast.Name('dict'):
                pass
            case _ if not isinstance(node, (*_LITERALS, ast.keyword, ast.expr_context)):
                return False
    return True


def load_from_local(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read a file or folder of this machine, given as a path or as ``file://``."""
    local = filename.removeprefix('file://')
    if re.match(r'[\w+.-]+://', local):
        return load_from_unknown(filename, map_location)
    path = Path(local).expanduser()
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


def _download(url: str, path: Path) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'downloading {url} to {path}', logger='current')
        torch.hub.download_url_to_file(url, str(path), progress=os.isatty(2))


def load_named(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read a model by its name in MMEngine's lists, such as ``torchvision://resnet50``.

    Only the backbone of a classifier of ``mmcls://`` is kept.
    """
    scheme, _, model = filename.partition('://')
    urls = _model_urls(scheme)
    if model not in urls:
        raise ValueError(f'{scheme}:// has no model {model!r}, known are {sorted(urls)}')
    checkpoint = CheckpointLoader.load_checkpoint(urls[model], map_location)
    if scheme != 'mmcls':
        return checkpoint
    prefix, weights = 'backbone.', weights_of(checkpoint, filename)
    kept = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return {'state_dict': kept}


def _model_urls(scheme: str) -> Mapping[str, str]:
    if scheme == 'mmcls':
        return theirs.get_mmcls_models()
    if scheme in ('open-mmlab', 'openmmlab'):
        models = theirs.get_external_models()
        renamed = theirs.get_deprecated_model_names()
        return models | {old: models[new] for old, new in renamed.items() if new in models}
    try:
        return theirs.get_torchvision_models()
    except ImportError:
        # torchvision is not installed; the list that comes with MMEngine has the usual names.
        return load(Path(mmengine.__file__).with_name('hub') / 'torchvision_0.12.json')


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Read ``s3://`` and ``petrel://`` through MMEngine's file back end."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    return read_checkpoint(io.BytesIO(backend.get(filename)), map_location, name=filename)


def load_from_unknown(filename: str, map_location: MapLocation = None) -> Checkpoint:
    """Refuse an address that we cannot read; MMEngine's own reader would unpickle the file."""
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
