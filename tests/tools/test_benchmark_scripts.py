"""The benchmarks' gates on their smallest cases, in this process; nothing is timed."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
pytest.importorskip('transformers')

from tools.benchmark import (
    breakdown,
    data,
    harness,
    inference,
    ops,
    postprocess,
    products,
    sampling,
    scaling,
    train_step,
    tuning,
    weights,
)
from tools.benchmark.cases import CASES
from tools.benchmark.counting import count

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(harness.FOLDER, str(tmp_path))
    return tmp_path


def verdicts(module: ModuleType, case: str, names: Sequence[str]) -> Mapping[str, object]:
    found = module.disagreement(case, names)
    if not isinstance(found, Mapping):
        found = dict.fromkeys(names, harness.Agreement(*found))
    assert set(found) == set(names)
    return found


@pytest.mark.parametrize(
    ('module', 'case', 'names'),
    [
        (ops, '64x64b1_both', ('reference', 'mmcv')),
        (sampling, 'matching_64', ('features', 'masks')),
        (sampling, 'loss_64', ('features', 'masks')),
        (postprocess, 'semantic_64x80', ('ours', 'naive')),
        (postprocess, 'instance_64x80', ('ours', 'ours-rle', 'naive')),
        (postprocess, 'panoptic_64x80', ('ours', 'naive')),
        (postprocess, 'loss_30x128', ('ours', 'mmdet')),
        (postprocess, 'loss_300x128', ('ours', 'mmdet')),
        (postprocess, 'loss_130x128_130-queries', ('ours', 'mmdet')),
        (data, 'lsj', ('ours', 'mmdet')),
        (data, 'semantic', ('ours', 'mmseg')),
        (scaling, 'small_64', ('ours', 'hf', 'mmseg')),
        (train_step, 'r18_64', ('ours', 'hf', 'mmseg-accelerated', 'mmseg')),
        (train_step, 'panoptic_64', ('ours', 'mmdet-accelerated', 'mmdet')),
        (
            inference,
            'r18_128',
            ('ours', 'ours-tuned', 'hf', 'mmseg-accelerated', 'mmseg'),
        ),
    ],
)
def test_outputs_agree(module: ModuleType, case: str, names: Sequence[str]) -> None:
    for name, agreement in verdicts(module, case, names).items():
        assert isinstance(agreement, harness.Agreement), f'{name}: {agreement}'
        assert agreement.difference <= agreement.limit, name
        assert math.isnan(agreement.argmax) or agreement.argmax > 0.99, name


def test_the_accelerated_detector_is_ours() -> None:
    """The stock path, to which a hook on its head would lead, has no rounding of its own."""
    [agreement] = verdicts(inference, 'panoptic_200x333', ['mmdet-accelerated']).values()
    assert isinstance(agreement, harness.Agreement)
    assert 0 < agreement.difference <= agreement.limit
    assert agreement.argmax > 0.99


@pytest.mark.parametrize('module', [inference, train_step])
def test_accelerated_peers_run_where_they_are_named(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[harness.Benchmark] = []
    monkeypatch.setattr(harness, 'main', offered.append)
    module.main()
    [benchmark] = offered
    usual = harness._parse(benchmark, []).implementations
    named = ['--implementations', 'mmseg-accelerated']
    assert 'mmseg' in usual
    assert not [name for name in usual if name.endswith('-accelerated')]
    assert harness._parse(benchmark, named).implementations == named[1:]


@pytest.mark.filterwarnings('ignore:`torch.jit.script_method` is deprecated:DeprecationWarning')
def test_of_ours_the_network_is_compiled_and_not_what_comes_after(folder: Path) -> None:
    alone = CASES['r18_128']._replace(peers=())
    alone.share_weights(alone.test())
    model, _ = inference.load_variant('r18_128', 'ours-compiled')
    assert model.backbone._compiled_call_impl is not None
    assert model.decode_head._compiled_call_impl is not None
    assert model._compiled_call_impl is None


def test_what_cannot_run_says_why() -> None:
    assert 'Hugging Face' in str(train_step.why_not('hf-checkpointed'))
    assert train_step.why_not('hf') is None


def test_weights_come_back(folder: Path) -> None:
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    weights.save_weights(folder / 'layer', first.state_dict())
    weights.load_weights(folder / 'layer', second)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_the_threads_found_first_hold_for_all(folder: Path) -> None:
    calls = []
    before = torch.get_num_threads()
    try:
        tuning.with_best_threads(lambda: calls.append(torch.get_num_threads()), 'case')()
        found = int((folder / 'case.threads').read_text())
        assert 1 <= found <= before
        calls.clear()
        tuning.with_best_threads(lambda: calls.append(torch.get_num_threads()), 'case')()
        assert calls == [found]
    finally:
        torch.set_num_threads(before)


def test_bytes_of_a_result() -> None:
    assert postprocess.num_bytes([torch.zeros(3), torch.zeros(5, dtype=torch.bool)]) == 17
    assert postprocess.num_bytes([torch.zeros(1), [{'counts': b'abc'}]]) == 7


def above_model(case: str, implementation: str, folder: Path) -> float:
    """MiB of a step in a fresh process beyond its inputs and what it returns."""
    result = folder / 'result.json'
    command = [sys.executable, '-m', 'tools.benchmark.postprocess', '--measure', case]
    command += [implementation, '--warm-up', '0', '--steps', '1', '--result', str(result)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run(command, cwd=harness.ROOT, env=environment, check=True)
    return json.loads(result.read_text())['above_model_mib']


@pytest.mark.long
@pytest.mark.parametrize(
    ('case', 'implementation'),
    [
        ('semantic_4000x5000', 'ours'),
        ('instance_4000x5000', 'ours'),
        ('instance_4000x5000', 'ours-rle'),
        ('panoptic_4000x5000', 'ours'),
    ],
)
def test_a_huge_result_needs_less_than_a_gigabyte_beside_it(
    case: str, implementation: str, folder: Path
) -> None:
    needed = above_model(case, implementation, folder)
    # A measurement that sees nothing would pass, too.
    assert 1 < needed < 1e9 / 2**20


@pytest.mark.long
def test_losses_of_300_instances_need_less_than_a_gigabyte_more_than_those_of_none(
    folder: Path,
) -> None:
    none = above_model('loss_0x1024', 'ours', folder)
    for case in ('loss_300x1024', 'loss_300x1024_300-queries'):
        assert 1 < above_model(case, 'ours', folder) - none < 1e9 / 2**20, case


def test_targets_of_the_growth() -> None:
    for number in (1, 30, 300):
        labels = scaling.grid(number, 64).unique()
        assert len(labels[labels != scaling.IGNORE]) == number
        assert labels.max() < scaling.NUM_CLASSES


def test_products_alone_do_the_arithmetic_of_the_step() -> None:
    case = 'train-r18_64'
    assert set(products.disagreement(case, ['ours-products', 'mmseg'])) == {
        'ours-products',
        'mmseg',
    }
    step = products._prepare_whole(case, 'ours')
    alone = products.replay(products.noted_products(step))
    # Attention, which is no product of matrices to PyTorch, is among the FLOPs of the step.
    assert 0.97 * count(step).flops < count(alone).flops <= count(step).flops


def test_a_breakdown_has_all_kinds_of_work_and_their_floors(tmp_path: Path) -> None:
    path = tmp_path / 'breakdown.csv'
    small = ['--case', 'r18_64', '--implementations', 'ours', '--steps', '1']
    threads = str(torch.get_num_threads())
    breakdown.main([*small, '--threads', threads, '--csv', str(path)])
    with path.open() as file:
        found = {row.pop('work'): row for row in csv.DictReader(file)}
    whole = found.pop(breakdown.STEP)
    assert {'products', 'convolutions', 'deformable attention', 'optimiser'} < set(found)
    # Six of the encoder's layers, forward and backward.
    assert int(found['deformable attention']['calls']) == 12
    without = {kind for kind, row in found.items() if not float(row['floor_s'])}
    assert without == {'deformable attention', breakdown.OUTSIDE}
    assert float(whole['floor_s']) > 0


def test_products_are_noted_with_their_strides() -> None:
    layer, last = torch.nn.Conv2d(3, 4, 1), torch.channels_last
    images = torch.ones(1, 3, 5, 5).contiguous(memory_format=last)[..., :4]
    rows = torch.ones(1, 7).expand(6, 7)

    def step() -> None:
        layer(images)
        torch.mm(rows, torch.ones(9, 7).T)

    first, second = products.noted_products(step)
    assert first[0].name() == 'aten::convolution'
    assert second[0].name() == 'aten::mm'
    for noted, given in ((first[1][0], images), (second[1][0], rows)):
        assert (noted.shape, noted.stride()) == (given.shape, given.stride())
    assert count(products.replay([first, second])).flops == count(step).flops


def test_products_of_attention_are_noted() -> None:
    query = torch.ones(1, 2, 3, 8)
    open_to_all = torch.ones(1, 1, 3, 3, dtype=torch.bool)

    def step() -> None:
        attend = torch.nn.functional.scaled_dot_product_attention
        attend(query, query, query, attn_mask=open_to_all)

    [call] = products.noted_products(step)
    assert 'attention' in call[0].name()
    products.replay([call])()
