"""The house rules that a machine can check: who may import whom, and names."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmseg_m2f'
FRAMEWORKS = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}

# A module of the core may import those of earlier rows only.
CORE_ORDER = [
    {'chunks', 'config', 'structures'},
    {'layers', 'losses', 'points'},
    {'deform_attn', 'matching'},
    {'pixel_decoder', 'decoder', 'criterion', 'postprocess', 'targets'},
    {'postprocess_instance', 'postprocess_panoptic', 'postprocess_semantic'},
    {'__init__'},
]
MAY_IMPORT = {
    'core': {'core', 'ops'},
    'cpu': {'core', 'cpu', 'ops'},
    'ops': {'ops'},
    'checkpoints': {'checkpoints'},
    'evaluation': {'evaluation'},
    'metadata': {'metadata'},
}

# Room of `adapters` -> rooms it imports. Every room may import the files beside the rooms.
ROOMS = {
    'acceleration': {'migrate', 'models'},
    'checkpoints': {'models'},
    'data': set(),
    'inference': {'models'},
    'metrics': set(),
    'migrate': {'models'},
    'models': set(),
    'results': {'data', 'metrics'},
    'training': {'checkpoints', 'data'},
}
BESIDE_THE_ROOMS = {'arrays', 'errors', 'keys', 'things'}


def sources(*folders):
    """Python files of the package, or of some of its folders, as ``(path, tree)``."""
    roots = [PACKAGE / folder for folder in folders] or [PACKAGE]
    # What stands under .mim are links to folders beside the package.
    files = sorted(
        path for root in roots for path in root.rglob('*.py') if '.mim' not in path.parts
    )
    assert files
    return [(path, ast.parse(path.read_text(encoding='utf-8'))) for path in files]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree):
    """Dotted names of everything a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports name the whole path'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_only_the_adapters_import_the_frameworks():
    """Functions of ``cpu`` may, too."""
    wrong = []
    for path, tree in sources():
        room = path.relative_to(PACKAGE).parts[0]
        if room in ('adapters', 'registry.py'):
            continue
        names = set(imports(tree))
        if room == 'cpu':
            names -= {name for function in functions(tree) for name in imports(function)}
        wrong += [f'{name_of(path)}: {name}' for name in names if name.split('.')[0] in FRAMEWORKS]
    assert not wrong


def test_nothing_but_its_hook_imports_the_folder_for_cpus():
    importing = [
        name_of(path)
        for path, tree in sources()
        if path.relative_to(PACKAGE).parts[0] != 'cpu'
        and any(f'{name}.'.startswith('mmseg_m2f.cpu.') for name in imports(tree))
    ]
    assert importing == ['mmseg_m2f/adapters/training/cpu_hooks.py']


@pytest.mark.parametrize('folder', MAY_IMPORT)
def test_arrows_between_the_folders(folder):
    if folder == 'cpu' and not (PACKAGE / 'cpu').exists():
        pytest.skip('this folder may be deleted')
    wrong = [
        f'{name_of(path)} imports {name}'
        for path, tree in sources(folder)
        for name in imports(tree)
        if name.startswith('mmseg_m2f.') and name.split('.')[1] not in MAY_IMPORT[folder]
    ]
    assert not wrong


def test_rooms_of_the_adapters():
    found = {room: set() for room in (*ROOMS, *BESIDE_THE_ROOMS)}
    for path, tree in sources('adapters'):
        room = path.relative_to(PACKAGE / 'adapters').parts[0].removesuffix('.py')
        if room != '__init__':  # it imports all rooms, so that their types are found
            names = {name for name in imports(tree) if name.startswith('mmseg_m2f.adapters.')}
            found[room] |= {name.split('.')[2] for name in names} - {room}
    assert {room: found[room] - BESIDE_THE_ROOMS for room in ROOMS} == ROOMS
    assert not set().union(*(found[name] for name in BESIDE_THE_ROOMS))
    graphlib.TopologicalSorter(ROOMS).prepare()  # raises if there is a circle


def test_the_core_forms_a_line():
    rank = {name: row for row, names in enumerate(CORE_ORDER) for name in names}
    modules = {path.stem for path, _ in sources('core')}
    assert modules <= set(rank), 'a new module: give it a place in CORE_ORDER'
    wrong = [
        f'{path.stem} imports {name}'
        for path, tree in sources('core')
        for name in imports(tree)
        if name.startswith('mmseg_m2f.core')
        and rank[name.split('.')[2] if name.count('.') > 1 else '__init__'] >= rank[path.stem]
    ]
    assert not wrong


def test_importing_the_core_loads_no_framework_and_prints_nothing():
    code = (
        'import sys, mmseg_m2f\n'
        "assert 'torch' not in sys.modules\n"
        'import mmseg_m2f.core, mmseg_m2f.ops\n'
        f'loaded = {{name.split(".")[0] for name in sys.modules}} & {FRAMEWORKS!r}\n'
        'assert not loaded, loaded'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_no_file_is_called_utils():
    assert not [name_of(path) for path, _ in sources() if 'util' in path.stem]


def test_annotations_are_evaluated():
    # Shapes are checked at run time: a postponed annotation is a string nobody reads.
    assert not [
        name_of(path) for path, tree in sources() if '__future__.annotations' in set(imports(tree))
    ]


def test_shapes_are_checked_in_tests(request):
    import jaxtyping
    import torch

    from mmseg_m2f.core import mask_logits

    if not request.config.getoption('jaxtyping_packages'):
        pytest.skip('run without the shape checker')
    with pytest.raises(jaxtyping.TypeCheckError):
        mask_logits(torch.zeros(1, 2, 3), torch.zeros(1, 4, 5, 5))  # 3 channels are not 4


def test_the_project_speaks_of_itself_only():
    foreign = re.compile(
        r'(?<!scope=.)\bsessions?\b|\bissue #\d|(?<![\w.])/(work|root|home)/|/tmp/', re.IGNORECASE
    )
    folders = ('mmseg_m2f', 'configs', 'docs', 'scripts', 'tests', 'tools', '.ci')
    files = [path for folder in folders for path in (ROOT / folder).rglob('*')]
    files += [*ROOT.glob('*.md'), *ROOT.glob('*.toml'), ROOT / 'Makefile']
    kinds = {'', '.py', '.md', '.sh', '.toml', '.yml', '.yaml'}
    texts = [path for path in files if path.is_file() and path.suffix in kinds]
    found = [
        f'{name_of(path)}:{number}: {line.strip()}'
        for path in texts
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
        if foreign.search(line)
    ]
    assert not found
