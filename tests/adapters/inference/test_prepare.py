"""``mmseg_m2f.prepare_inference`` and its hook: the same results, clear refusals."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvWS2d
from mmengine import Config, ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, distributed, nn

pytest.importorskip('mmseg')

from mmseg.models import ResNet

import mmseg_m2f
from mmseg_m2f.adapters.inference import FUSIBLE, CannotPrepareError, PrepareInferenceHook
from tests import reduced
from tests.adapters import small_models
from tests.parity.parity_weights import redraw, tell_queries_apart
from tests.tools.conftest import write_weights

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
ROOT = Path(__file__).parents[3]
FCN = {'type': 'FCNHead', 'in_channels': 64, 'channels': 8, 'num_classes': 3}
# Share of the range in float64: some thirty layers, each off by some 1e-15, stay far below it.
BOUND = 1e-9


def build(kind: str) -> nn.Module:
    """Build a model in evaluation mode, with weights and statistics that matter."""
    if kind in ('stock', 'detector'):
        pytest.importorskip('mmdet')
    if kind == 'stock':
        from tests.adapters import stock_models

        return stock_models.build('mmseg')
    init_default_scope('mmdet' if kind == 'detector' else 'mmseg')
    config = small_models.detector() if kind == 'detector' else small_models.segmentor()
    if kind == 'fcn':
        config['decode_head'] = FCN
    model = MODELS.build(ConfigDict(config))
    if kind == 'fcn':
        redraw(model)
    else:
        tell_queries_apart(model, small_models.photo())
    return model.eval()


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    """Return the scores (of pixels, or of a detector's instances) and the labels of the pixels."""
    inner = getattr(model, 'module', model)
    data = inner.data_preprocessor(small_models.photo(), training=False)
    data['inputs'] = data['inputs'].to(next(model.parameters()).dtype)
    with torch.no_grad():
        [sample] = model(**data, mode='predict')
    if 'pred_instances' in sample:
        return sample.pred_instances.scores, sample.pred_sem_seg.sem_seg
    return sample.seg_logits.data, sample.pred_sem_seg.data


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    extent = float(expected.max() - expected.min())
    assert extent > 0
    assert float((found - expected).abs().max()) <= share * extent


@pytest.mark.parametrize('setting', ['channels_last', 'fuse_norms'])
@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock', 'fcn'])
def test_predictions_stay(kind: str, setting: str) -> None:
    model = build(kind).double()
    values, labels = outputs(model)
    for _ in range(2):
        assert mmseg_m2f.prepare_inference(model, **{setting: True}) is model
        found, found_labels = outputs(model)
        # A detector's scores are in float32.
        assert_near(found, values, 1e-6 if kind == 'detector' else BOUND)
        assert torch.equal(found_labels, labels)
    fused = not any('running_mean' in name for name in model.backbone.state_dict())
    assert fused == (setting == 'fuse_norms')
    last = model.backbone.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (setting == 'channels_last')


OF_MMDET = ['mmdet.ResNet', 'mmdet.ResNetV1d', 'mmdet.ResNeXt']
NAMES = [f'mmseg.{name}' for name in FUSIBLE] + OF_MMDET
BACKBONES = [(name, 50) for name in NAMES] + [(name, 18) for name in NAMES if 'ResNeXt' not in name]


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
@pytest.mark.parametrize(('name', 'depth'), BACKBONES)
def test_fused_backbones_give_the_same_maps(name: str, depth: int, norm: str) -> None:
    pytest.importorskip(name.partition('.')[0])
    settings = {'depth': depth, 'norm_cfg': {'type': norm, 'requires_grad': True}}
    settings |= {'groups': 2, 'base_width': 4} if 'ResNeXt' in name else {'base_channels': 8}
    init_default_scope(name.partition('.')[0])
    model = nn.Module()
    model.backbone = model.predict = MODELS.build({'type': name, **settings})
    redraw(model)
    model.double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model.predict(images)
        found = mmseg_m2f.prepare_inference(model, fuse_norms=True).predict(images)
    assert not any('running_mean' in name for name in model.state_dict())
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, BOUND)


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16])
@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock'])
def test_bfloat16_is_an_autocast_around_predict(kind: str, dtype: Any) -> None:
    model, seen = build(kind), []
    with torch.autocast('cpu', torch.bfloat16):
        expected, labels = outputs(model)
    model.backbone.register_forward_hook(lambda _, __, maps: seen.append(maps[0].dtype))
    for _ in range(2):  # the second takes the place of the first
        mmseg_m2f.prepare_inference(model, dtype=dtype)
        assert model.predict.__self__.plain.__self__ is model
    found, found_labels = outputs(model)
    assert seen == [torch.bfloat16]
    assert torch.equal(found, expected)
    assert torch.equal(found_labels, labels)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    twin = copy.deepcopy(model)  # it has weights of its own
    nn.init.zeros_(model.backbone.conv1.weight)
    assert torch.equal(outputs(twin)[0], expected)
    assert not torch.equal(outputs(model)[0], expected)


def test_a_model_inside_of_ddp() -> None:
    model = build('segmentor')
    expected, _ = outputs(model)
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model).eval()
        assert mmseg_m2f.prepare_inference(wrapped, fuse_norms=True, dtype='bfloat16') is wrapped
        found, _ = outputs(wrapped)
    finally:
        distributed.destroy_process_group()
    assert isinstance(model.backbone.bn1, nn.Identity)
    assert not torch.equal(found, expected)


FUSE = {'fuse_norms': True}
MINE = type('ResNet', (ResNet,), {'__module__': 'mine'})
NORMS = r'frozen norms.*backbone\.bn1 is BatchNorm2d'


@pytest.mark.parametrize(
    ('change', 'settings', 'message'),
    [
        ({'training': True}, {'channels_last': True}, r'after model\.eval\(\)'),
        ({'backbone.bn1.training': True}, FUSE, NORMS),
        ({'backbone.bn1.running_mean': None}, FUSE, NORMS),
        ({'backbone.bn1.affine': False}, FUSE, NORMS),
        ({'backbone.conv1': ConvWS2d(3, 8, 7)}, FUSE, r'plain conv.*backbone\.conv1 is ConvWS2d'),
        ({'backbone.__class__': MINE}, FUSE, r"one of \('ResNet'.*not mine\.ResNet"),
        ({}, {'dtype': 'float16'}, r"one of \['bfloat16'\] on cpu, got 'float16'"),
        ({}, {}, 'a setting: all are off'),
    ],
)
def test_refusals_leave_the_model_as_it_was(change: dict, settings: dict, message: str) -> None:
    model = build('segmentor')
    for path, value in change.items():
        owner, _, name = path.rpartition('.')
        setattr(model.get_submodule(owner), name, value)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotPrepareError, match=message):
        mmseg_m2f.prepare_inference(model, **{'channels_last': bool(settings), **settings})
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.backbone.conv1.weight.is_contiguous()
    assert 'predict' not in vars(model)


def test_other_models_and_heads_are_refused() -> None:
    with pytest.raises(CannotPrepareError, match=r'a segmentor or detector.*not Linear'):
        mmseg_m2f.prepare_inference(nn.Linear(2, 2).eval(), channels_last=True)
    for kind in ('stock', 'fcn'):
        with pytest.raises(CannotPrepareError, match='our or an accelerated head to compile'):
            mmseg_m2f.prepare_inference(build(kind), compile=True)


# In a process of its own: the tests' check of shapes wraps every function of the core, which the
# compiler cannot see through. The back end that needs no C++ compiler.
COMPILED = """
import functools
from torch import nn
import mmseg_m2f
from tests.adapters.inference import test_prepare as tests

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=backend)
for kind in ('segmentor', 'detector', 'stock'):
    model = tests.build(kind).double()
    if kind == 'stock':
        mmseg_m2f.accelerate(model)
    values, labels = tests.outputs(model)
    mmseg_m2f.prepare_inference(model, compile=True)
    graphs.clear()
    for _ in range(2):
        found, found_labels = tests.outputs(model)
        tests.assert_near(found, values, 1e-6)
        # But for a pixel where two classes are equally likely.
        assert (found_labels == labels).float().mean() >= 0.999
        # The backbone and the head, once.
        assert len(graphs) == 2, f'{kind}: {len(graphs)} graphs'
"""


def test_the_network_is_compiled() -> None:
    pytest.importorskip('mmdet')
    command = [sys.executable, '-c', COMPILED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


class Record(Hook):
    """Keep the label maps of a test or a validation, and whether the norms are fused then."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.fused: list[bool] = []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs:
            self.labels.append(sample.pred_sem_seg.data.flatten())
            self.fused.append('backbone.bn1.weight' not in runner.model.state_dict())

    after_val_iter = after_test_iter


@pytest.mark.filterwarnings('ignore')
def test_the_hook_acts_before_tests_alone_once_the_weights_are_loaded(tmp_path: Path) -> None:
    row = Config.fromfile(ROOT / 'configs/mask2former_r50_ade20k.py')
    cfg = reduced.reduce_config(row, tmp_path)
    cfg.custom_hooks += [{'type': 'mmseg_m2f.PrepareInferenceHook', 'fuse_norms': True}]
    cfg.dump(tmp_path / 'row.py')
    image = next((tmp_path / 'images/validation').iterdir())
    cfg.load_from = str(write_weights(tmp_path / 'row.py', image, range(20)))
    cfg.default_hooks.checkpoint = None  # it cannot validate before a training
    runner, record = Runner.from_cfg(cfg), Record()
    runner.register_hook(record)
    for run in (runner.val, runner.test, runner.test):
        run()
    with pytest.raises(CannotPrepareError, match='a training before the test'):
        runner.train()
    number = len(record.labels) // 3
    assert record.fused == [False] * number + [True] * 2 * number
    expected, *results = (torch.cat(record.labels[i * number :][:number]) for i in range(3))
    assert len(expected.unique()) > 1
    for found in results:
        assert (found == expected).float().mean() >= 0.999


def test_the_hook_takes_what_the_function_takes_and_fuses_nothing_beside_moving_averages() -> None:
    runner = SimpleNamespace(model=build('segmentor'), hooks=[EMAHook()])
    with pytest.raises(CannotPrepareError, match='fuse_norms=False beside EMAHook'):
        PrepareInferenceHook(fuse_norms=True).before_test(runner)
    PrepareInferenceHook(channels_last=True).before_test(runner)
    assert isinstance(runner.model.backbone.bn1, nn.BatchNorm2d)
    with pytest.raises(TypeError, match='cast_weights'):
        PrepareInferenceHook(cast_weights=True)
