"""Install mmcv with deformable attention as its only compiled operator (about a minute).

    python tools/benchmark/gpu_build.py onedl_mmcv-2.3.6.tar.gz SITE

It unpacks mmcv into the folder SITE and compiles for the GPU of this machine. Without a GPU the
operator exists only by name.
"""

import argparse
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

BUILT = {'ms_deform_attn_forward', 'ms_deform_attn_backward'}


def left_out_names(mmcv: Path) -> list[str]:
    """List the functions that mmcv's Python code asks of its extension and that are not built."""
    names: set[str] = set()
    for path in mmcv.glob('ops/**/*.py'):
        for names_text in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.S):
            names.update(re.findall(r"'(\w+)'", names_text))
    if not names >= BUILT:
        raise RuntimeError(f'{mmcv} does not ask for {sorted(BUILT - names)}: another mmcv?')
    return sorted(names - BUILT)


def compile_extension(mmcv: Path, build: Path) -> Path:
    """Compile the reduced ``_ext`` in the folder ``build`` and return the library's path."""
    (build / 'left_out.inc').write_text(''.join(f'"{name}",\n' for name in left_out_names(mmcv)))
    csrc = mmcv / 'ops' / 'csrc'
    sources = [Path(__file__).with_name('gpu_ext.cpp'), csrc / 'pytorch/ms_deform_attn.cpp']
    flags = []
    if torch.cuda.is_available():
        sources.append(csrc / 'pytorch/cuda/ms_deform_attn_cuda.cu')
        flags.append('-DMMCV_WITH_CUDA')
    cpp_extension.load(
        name='_ext',
        sources=[str(source) for source in sources],
        extra_cflags=['-O1', *flags],
        extra_cuda_cflags=flags,
        extra_include_paths=[str(build), str(csrc / 'common'), str(csrc / 'common/cuda')],
        build_directory=str(build),
        with_cuda=torch.cuda.is_available(),
        verbose=True,
    )
    return build / '_ext.so'


def main() -> None:
    parser = argparse.ArgumentParser(description='Install a reduced build of mmcv.')
    parser.add_argument('archive', type=Path, help='the source distribution of onedl-mmcv')
    parser.add_argument('site', type=Path, help='the folder to install into')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as build:
        with tarfile.open(args.archive) as tar:
            tar.extractall(build, filter='data')
        [sources] = Path(build).glob('*mmcv-*')
        library = compile_extension(sources / 'mmcv', Path(build))
        mmcv = args.site / 'mmcv'
        shutil.copytree(sources / 'mmcv', mmcv, ignore=shutil.ignore_patterns('csrc'))
        shutil.copy(library, mmcv)
        # mmcv reads its own version from the metadata.
        metadata = args.site / f'{sources.name}.dist-info'
        metadata.mkdir()
        shutil.copy(sources / 'PKG-INFO', metadata / 'METADATA')


if __name__ == '__main__':
    main()
