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
from mmengine import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, distributed, nn

pytest.importorskip('mmseg')

from mmseg.models import ResNet

import mmseg_m2f
from mmseg_m2f.adapters.inference import (
    FUSIBLE,
    CannotPrepareError,
    PrepareInferenceHook,
)
from tests import reduced
from tests.adapters.inference.prepared_models import (
    assert_near,
    assert_same_labels,
    build,
    outputs,
)
from tests.parity.parity_weights import redraw
from tests.tools.conftest import write_weights

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
ROOT = Path(__file__).parents[3]
ROW = ROOT / 'configs/mask2former_r50_ade20k.py'
KINDS = ['segmentor', 'detector', 'stock', 'fcn']
# Share of the range in float64: some thirty layers, each off by some 1e-15, stay far below it.
BOUND = 1e-9


@pytest.mark.parametrize('setting', ['channels_last', 'fuse_norms'])
@pytest.mark.parametrize('kind', KINDS)
def test_predictions_stay(kind: str, setting: str) -> None:
    model = build(kind).double()
    values, labels = outputs(model, kind)
    assert mmseg_m2f.prepare_inference(model, **{setting: True}) is model
    found, found_labels = outputs(model, kind)
    # A detector's scores are in float32.
    assert_near(found, values, 1e-6 if kind == 'detector' else BOUND)
    assert torch.equal(found_labels, labels)
    fused = not any('running_mean' in name for name in model.backbone.state_dict())
    assert fused == (setting == 'fuse_norms')
    last = model.backbone.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (setting == 'channels_last')
    mmseg_m2f.prepare_inference(model, **{setting: True})
    assert torch.equal(outputs(model, kind)[0], found)


class Classifier(nn.Module):
    """A model that is nothing but a backbone."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        init_default_scope(config['type'].partition('.')[0])
        self.backbone = MODELS.build(config)

    def predict(self, images: Tensor) -> Any:
        return self.backbone(images)


BACKBONES = [
    (f'{package}.{name}', depth)
    for package in ('mmseg', 'mmdet')
    for name in FUSIBLE
    for depth in (18, 50)
    # The others do not exist.
    if (package, name) != ('mmdet', 'ResNetV1c') and (name, depth) != ('ResNeXt', 18)
]


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
@pytest.mark.parametrize(('name', 'depth'), BACKBONES)
def test_fused_backbones_give_the_same_maps(name: str, depth: int, norm: str) -> None:
    pytest.importorskip(name.partition('.')[0])
    settings = {'depth': depth, 'norm_cfg': {'type': norm, 'requires_grad': True}}
    settings |= {'groups': 2, 'base_width': 4} if 'ResNeXt' in name else {'base_channels': 8}
    model = Classifier({'type': name, **settings})
    redraw(model)
    model.double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model.predict(images)
        mmseg_m2f.prepare_inference(model, fuse_norms=True)
        found = model.predict(images)
    assert not any('running_mean' in name for name in model.state_dict())
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, BOUND)


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16])
@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock'])
def test_bfloat16_is_an_autocast_around_predict(kind: str, dtype: Any) -> None:
    model, seen = build(kind), []
    with torch.autocast('cpu', torch.bfloat16):
        expected, labels = outputs(model, kind)
    model.backbone.register_forward_hook(lambda _, __, maps: seen.append(maps[0].dtype))
    for _ in range(2):  # the second takes the place of the first
        mmseg_m2f.prepare_inference(model, dtype=dtype)
        assert model.predict.__self__.plain.__self__ is model
    found, found_labels = outputs(model, kind)
    assert seen == [torch.bfloat16]
    assert torch.equal(found, expected)
    assert torch.equal(found_labels, labels)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_copy_has_weights_of_its_own() -> None:
    model = mmseg_m2f.prepare_inference(build('segmentor'), dtype='bfloat16')
    expected, _ = outputs(model, 'segmentor')
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.decode_head.decoder.class_embed.weight.zero_()
    assert torch.equal(outputs(twin, 'segmentor')[0], expected)
    assert not torch.equal(outputs(model, 'segmentor')[0], expected)


def test_a_model_inside_of_ddp() -> None:
    model = build('segmentor')
    expected, _ = outputs(model, 'segmentor')
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model).eval()
        assert mmseg_m2f.prepare_inference(wrapped, fuse_norms=True, dtype='bfloat16') is wrapped
        found, _ = outputs(wrapped, 'segmentor')
    finally:
        distributed.destroy_process_group()
    assert isinstance(model.backbone.bn1, nn.Identity)
    assert not torch.equal(found, expected)


FUSE = {'fuse_norms': True}
NORMS = r'frozen norms.*backbone\.bn1 is BatchNorm2d'


def set_on_backbone(**attributes: Any) -> Any:
    """Return a function that sets these attributes of a model's backbone."""

    def change(model: Any) -> None:
        for name, value in attributes.items():
            setattr(model.backbone, name, value)

    return change


@pytest.mark.parametrize(
    ('change', 'settings', 'message'),
    [
        (lambda model: model.train(), {'channels_last': True}, r'after model\.eval\(\)'),
        (lambda model: model.backbone.bn1.train(), FUSE, NORMS),
        (set_on_backbone(bn1=nn.BatchNorm2d(8, track_running_stats=False).eval()), FUSE, NORMS),
        (set_on_backbone(bn1=nn.BatchNorm2d(8, affine=False).eval()), FUSE, NORMS),
        (
            set_on_backbone(conv1=ConvWS2d(3, 8, 7, stride=2, padding=3, bias=False)),
            FUSE,
            r'plain conv.*backbone\.conv1 is ConvWS2d',
        ),
        (
            set_on_backbone(__class__=type('ResNet', (ResNet,), {'__module__': 'mine'})),
            FUSE,
            r"one of \('ResNet'.*not mine\.ResNet",
        ),
        (None, {'dtype': 'int8'}, r"one of \['bfloat16'\] on cpu, got 'int8'"),
        (None, {'dtype': 'float16'}, r"one of \['bfloat16'\] on cpu, got 'float16'"),
        (None, {}, 'a setting: all are off'),
    ],
)
def test_refusals_leave_the_model_as_it_was(change: Any, settings: dict, message: str) -> None:
    model = build('segmentor')
    if change is not None:
        change(model)
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
from tests.adapters.inference import prepared_models as tests

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=backend)
for kind in ('segmentor', 'detector', 'stock'):
    model = tests.build(kind).double()
    if kind == 'stock':
        mmseg_m2f.accelerate(model)
    values, labels = tests.outputs(model, kind)
    mmseg_m2f.prepare_inference(model, compile=True)
    graphs.clear()
    for _ in range(2):
        found, found_labels = tests.outputs(model, kind)
        tests.assert_near(found, values, 1e-6)
        tests.assert_same_labels([found_labels], [labels])
        # The backbone and the head, once.
        assert len(graphs) == 2, f'{kind}: {len(graphs)} graphs'
"""


def test_the_network_is_compiled() -> None:
    pytest.importorskip('mmdet')
    done = subprocess.run(
        [sys.executable, '-c', COMPILED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Record(Hook):
    """Keep the label maps of a test or a validation, and whether the norms are fused then."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.fused: list[bool] = []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.labels += [sample.pred_sem_seg.data.clone() for sample in outputs]
        self.fused.append('backbone.bn1.weight' not in runner.model.state_dict())

    after_val_iter = after_test_iter


def runner_of(folder: Path, name: str, checkpoint: Path) -> tuple[Runner, Record]:
    cfg = Config.fromfile(folder / 'row.py')
    cfg.custom_hooks += [{'type': 'mmseg_m2f.PrepareInferenceHook', 'fuse_norms': True}]
    cfg.load_from, cfg.randomness = str(checkpoint), {'seed': 0}
    cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(folder / name)
    runner, record = Runner.from_cfg(cfg), Record()
    runner.register_hook(record)
    return runner, record


@pytest.mark.filterwarnings('ignore')
def test_the_hook_acts_before_tests_alone_once_the_weights_are_loaded(tmp_path: Path) -> None:
    config = reduced.reduce_config(Config.fromfile(ROW), tmp_path)
    config.dump(tmp_path / 'row.py')
    image = next((tmp_path / 'images/validation').iterdir())
    write_weights(tmp_path / 'row.py', image, range(20))

    training, validated = runner_of(tmp_path, 'training', tmp_path / 'row.pth')
    training.train()
    assert not any(validated.fused)
    assert len(torch.cat([labels.flatten() for labels in validated.labels]).unique()) > 1

    test, tested = runner_of(tmp_path, 'test', tmp_path / 'training/iter_2.pth')
    for _ in range(2):
        test.test()
    assert all(tested.fused)
    assert_same_labels(tested.labels, validated.labels * 2)
    with pytest.raises(CannotPrepareError, match='a training before the test'):
        test.train()


def test_the_hook_fuses_nothing_beside_moving_averages() -> None:
    runner = SimpleNamespace(model=build('segmentor'), hooks=[EMAHook()])
    with pytest.raises(CannotPrepareError, match='fuse_norms=False beside EMAHook'):
        PrepareInferenceHook(fuse_norms=True).before_test(runner)
    PrepareInferenceHook(channels_last=True).before_test(runner)
    assert isinstance(runner.model.backbone.bn1, nn.BatchNorm2d)


def test_the_hook_takes_what_the_function_takes() -> None:
    with pytest.raises(TypeError, match='cast_weights'):
        PrepareInferenceHook(cast_weights=True)
