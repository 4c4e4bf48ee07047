"""Every claim of docs/numerics.md rests on tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMERICS = (ROOT / 'docs/numerics.md').read_text()
TEST = re.compile(r'`((?:tests/[\w/]+\.py)?)::(test_\w+)`')
MEASURED = '### Effect of each switch'


def claims():
    """The rows of all tables but the last, which holds measurements; without the headings."""
    lines = NUMERICS.split(MEASURED)[0].splitlines()
    return [line for line in lines if line.startswith('| ') and not line.endswith('| test |')]


@pytest.mark.parametrize('claim', claims(), ids=lambda claim: claim[2:50])
def test_every_line_names_tests_that_exist(claim):
    last = claim.rstrip(' |').rsplit(' | ', 1)[-1]
    named = TEST.findall(last)
    assert named
    if named[0][0].startswith('tests/cpu/') and not (ROOT / 'mmseg_m2f/cpu').exists():
        pytest.skip('this folder may be deleted')
    file = None
    for path, name in named:
        file = path or file
        assert file is not None
        assert name in functions(ROOT / file)


def functions(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
