"""The comparisons of the benchmarks, on small images in this process. Nothing is timed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
pytest.importorskip('transformers')

from tools.benchmark import data, deform_attn, inference, measure, memory, models, training
from tools.benchmark.cases import CASES, Case
from tools.benchmark.images import batch_of

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]

SEMANTIC = CASES['inference-r50-512']._replace(model='r18', size=(128, 128))
PANOPTIC = CASES['inference-panoptic-800x1333']._replace(size=(200, 333))
TRAINING = CASES['training-r50-512']._replace(model='r18', size=(64, 64))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(measure.FOLDER, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ('module', 'case'),
    [(inference, SEMANTIC), (inference, PANOPTIC), (training, TRAINING)],
    ids=['semantic', 'panoptic', 'training'],
)
def test_all_implementations_agree(module: Any, case: Case) -> None:
    names = [*case.more, *case.implementations]
    if importlib.util.find_spec('mmseg_m2f.cpu') is None:
        names.remove('ours-cpu')
    found = module.compare(case, names)
    assert list(found) == names
    for name, agreement in found.items():
        assert agreement.holds, f'{name}: {agreement}'
    assert found[names[-1]].largest == 0
    assert found['ours'].largest > 0


@pytest.mark.parametrize('part', ['forward', 'both passes'])
def test_deformable_attention_agrees_with_float64(part: str) -> None:
    case = CASES['deform-attn-forward-512']._replace(size=(64, 64), part=part)
    for name, agreement in deform_attn.compare(case, case.implementations).items():
        assert agreement.holds, f'{name}: {agreement}'
        deform_attn.prepare(case, name)()


def test_a_wrong_weight_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build_shared

    def spoiled(name: str, implementation: str) -> Any:
        model = build(name, implementation)
        if implementation == 'ours':
            model.decode_head.decoder.class_embed.weight.data.mul_(1.1)
        return model

    monkeypatch.setattr(inference, 'build_shared', spoiled)
    found = inference.compare(SEMANTIC, ['ours', 'mmseg'])
    assert not found['ours'].holds
    assert found['mmseg'].holds


def test_what_is_timed_has_no_score_maps_and_training_changes_the_weights() -> None:
    models.share_weights('r18', [], batch_of(SEMANTIC))
    model = models.build_shared('r18', 'ours').eval()
    assert inference.outputs(model, batch_of(SEMANTIC)).values.shape == (150, 128, 128)
    [sample] = inference.predict(model, batch_of(SEMANTIC))
    assert 'seg_logits' not in sample
    assert 'pred_sem_seg' in sample
    step = training.prepare(TRAINING, 'ours')
    parameters = list(step.args[0].parameters())
    before = [p.detach().clone() for p in parameters]
    step()
    changed = [not torch.equal(*pair) for pair in zip(before, parameters, strict=True)]
    assert sum(changed) > len(changed) / 2


def test_only_the_model_that_is_named_so_is_sped_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = pytest.importorskip('mmseg_m2f.cpu')
    sped_up: list[Any] = []
    monkeypatch.setattr(cpu, 'speed_up', sped_up.append)
    _, faster = (models.build(models.SPECS['r18'], name) for name in ('ours', 'ours-cpu'))
    assert sped_up == [faster]


@pytest.mark.parametrize('case', [n for n, case in CASES.items() if case.kind == 'memory'])
def test_each_memory_case_counts_the_bytes_it_returns(case: str) -> None:
    assert memory.num_bytes([torch.zeros(3), torch.zeros(5, dtype=torch.bool)]) == 17
    assert memory.num_bytes([torch.zeros(1), [{'counts': b'abc'}]]) == 7
    result = memory.prepare(CASES[case]._replace(size=(64, 64)), 'ours')()
    assert (result is None) == case.startswith('memory-losses')


@pytest.mark.parametrize('case', [n for n, case in CASES.items() if case.kind == 'data'])
def test_each_pipeline_reads_the_tiny_images(case: str) -> None:
    for name in CASES[case].implementations:
        sample = data.build(CASES[case], name, data.pipeline(CASES[case], name))[0]
        assert sample['inputs'].shape[0] == 3
        targets = sample['data_samples']
        semantic = case.startswith('data-semantic')
        assert len(targets.gt_sem_seg.data if semantic else targets.gt_instances.labels) > 0


def above_model(case: str, folder: Path) -> float:
    """Return the MiB of a step in a fresh process beyond its inputs and what it returns."""
    result = folder / 'result.json'
    command = [sys.executable, '-W', 'ignore', '-m', 'tools.benchmark.run', '--measure', case]
    command += ['ours', '--result', str(result)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run(command, cwd=measure.ROOT, env=environment, check=True)
    return json.loads(result.read_text())['above_model_mib']


@pytest.mark.long
@pytest.mark.parametrize('part', ['semantic', 'instance', 'instance-rle', 'panoptic', 'losses'])
def test_less_than_a_gigabyte_beside_a_huge_result_and_for_300_targets(
    part: str, folder: Path
) -> None:
    if part == 'losses':
        none = above_model('memory-losses-0', folder)
        found = above_model('memory-losses-300', folder) - none
    else:
        found = above_model(f'memory-{part}', folder)
    # A measurement that sees nothing would pass, too.
    assert 1 < found < 1e9 / 2**20
