"""``mmseg_m2f.prepare_inference`` and the hooks: the same numbers, clear refusals."""

import copy
import gc
import inspect
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvWS2d
from mmengine import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

pytest.importorskip('mmseg')

import mmseg_m2f
from mmseg_m2f.adapters.inference import trials
from mmseg_m2f.adapters.inference.channels_last import ChannelsLastHook
from mmseg_m2f.adapters.inference.prepare import CannotPrepareError, PrepareInferenceHook
from tests import reduced
from tests.adapters import small_models
from tests.adapters.inference.prepared_models import (
    assert_near,
    assert_same_labels,
    batch,
    build,
    outputs,
)
from tests.tools.conftest import write_weights

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # The stock configurations' own.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock', 'fcn'])
def test_predictions_stay(kind: str) -> None:
    model = build(kind)
    values, labels = outputs(model, kind)
    assert any('running_mean' in name for name in model.backbone.state_dict())
    assert mmseg_m2f.prepare_inference(model) is model
    found, found_labels = outputs(model, kind)
    assert_near(found, values, 1e-3)
    assert_same_labels([found_labels], [labels])
    assert not any('running_mean' in name for name in model.backbone.state_dict())
    assert all(
        value.is_contiguous(memory_format=torch.channels_last)
        for value in model.parameters()
        if value.dim() == 4
    )
    before = list(model.state_dict())
    mmseg_m2f.prepare_inference(model)
    assert list(model.state_dict()) == before


def test_each_switch_alone() -> None:
    model = build('segmentor')
    state = copy.deepcopy(model.state_dict())
    mmseg_m2f.prepare_inference(model, fuse_norms=False)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.backbone.conv1.weight.is_contiguous()
    other = build('segmentor')
    mmseg_m2f.prepare_inference(other, channels_last=False)
    assert other.backbone.conv1.weight.is_contiguous()
    assert other.state_dict().keys() != state.keys()


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16])
@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock'])
def test_bfloat16_labels_agree(kind: str, dtype: Any) -> None:
    model = build(kind)
    _, labels = outputs(model, kind)
    seen: dict[str, torch.dtype] = {}
    model.backbone.register_forward_hook(lambda _, __, maps: seen.update(backbone=maps[0].dtype))
    if kind != 'stock':
        head = model.panoptic_head if kind == 'detector' else model.decode_head
        head.pixel_decoder.register_forward_hook(
            lambda _, __, features: seen.update(decoder=features.mask_features.dtype)
        )
    mmseg_m2f.prepare_inference(model, dtype=dtype)
    _, found = outputs(model, kind)
    assert float((found == labels).float().mean()) >= 0.95
    assert seen.pop('backbone') is torch.bfloat16
    assert set(seen.values()) <= {torch.float32}  # by design, of ours
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_autocast_is_set_anew_and_taken_back() -> None:
    model, seen = mmseg_m2f.prepare_inference(build('segmentor')), []
    model.backbone.register_forward_hook(lambda _, __, maps: seen.append(maps[0].dtype))
    for dtype in ('bfloat16', torch.bfloat16, 'float32', None):
        outputs(mmseg_m2f.prepare_inference(model, dtype=dtype), 'segmentor')
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_a_copy_has_weights_of_its_own() -> None:
    model = mmseg_m2f.prepare_inference(build('segmentor'), dtype='bfloat16')
    expected, _ = outputs(model, 'segmentor')
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.decode_head.decoder.class_embed.weight.zero_()
    assert torch.equal(outputs(twin, 'segmentor')[0], expected)
    assert not torch.equal(outputs(model, 'segmentor')[0], expected)


def test_inside_of_wrappers() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = build('segmentor')
    wrapped = Wrapper(Wrapper(model)).eval()
    assert mmseg_m2f.prepare_inference(wrapped) is wrapped
    assert isinstance(model.backbone.bn1, nn.Identity)


def test_after_accelerate() -> None:
    model = build('stock')
    values, labels = outputs(model, 'stock')
    mmseg_m2f.prepare_inference(mmseg_m2f.accelerate(model))
    found, found_labels = outputs(model, 'stock')
    assert_near(found, values, 1e-3)
    assert torch.equal(found_labels, labels)


@pytest.mark.parametrize('kind', ['segmentor', 'detector'])
def test_a_backbone_s_maps_are_gone_when_the_decoder_begins(kind: str) -> None:
    if kind == 'segmentor':
        config = ConfigDict({**small_models.segmentor(), 'type': 'mmseg_m2f.SemanticSegmentor'})
        init_default_scope('mmseg')
        model = MODELS.build(config).eval()
    else:
        model = build(kind)
    maps: list[weakref.ref[Tensor]] = []
    left: list[Tensor | None] = []
    head = model.panoptic_head if kind == 'detector' else model.decode_head
    model.backbone.register_forward_hook(lambda *args: maps.extend(map(weakref.ref, args[-1])))
    head.decoder.layers[0].register_forward_pre_hook(lambda *_: left.extend(ref() for ref in maps))
    with torch.no_grad():
        model.test_step(batch(kind))
    assert left == [None] * 4


def test_nothing_is_left_of_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[weakref.ref[nn.Module]] = []
    try_copy = trials._moved_by

    def watched(copied: nn.Module, *args: Any) -> float:
        copies.append(weakref.ref(copied))
        return try_copy(copied, *args)

    monkeypatch.setattr(trials, '_moved_by', watched)
    model = build('detector')  # whose faster parts know their modules
    gc.disable()  # it would come at some time
    try:
        mmseg_m2f.prepare_inference(model, dtype='bfloat16', cast_weights=True)
        left = [ref() for ref in copies]
    finally:
        gc.enable()
    assert left == [None, None]


def test_synchronised_norms_are_fused() -> None:
    model = build('segmentor')
    expected, _ = outputs(model, 'segmentor')
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.backbone.bn1, nn.SyncBatchNorm)
    assert_near(outputs(mmseg_m2f.prepare_inference(model), 'segmentor')[0], expected, 1e-3)
    assert isinstance(model.backbone.bn1, nn.Identity)


def test_random_numbers_are_left_alone() -> None:
    model, state = build('segmentor'), torch.get_rng_state()
    mmseg_m2f.prepare_inference(model)
    assert torch.equal(torch.get_rng_state(), state)


def in_training_mode(model: Any) -> None:
    model.train()


def norm_in_training_mode(model: Any) -> None:
    model.backbone.bn1.train()


def no_statistics(model: Any) -> None:
    model.backbone.bn1 = nn.BatchNorm2d(8, track_running_stats=False).eval()


def no_weight(model: Any) -> None:
    model.backbone.bn1 = nn.BatchNorm2d(8, affine=False).eval()


def norm_elsewhere(model: Any) -> None:
    """A ReLU between a convolution and the norm that was defined after it."""
    block = model.backbone.layer1[0]
    model.backbone.layer1[0] = nn.Sequential(block, nn.Conv2d(8, 8, 1), nn.ReLU(), block.bn1)


def standardised_weights(model: Any) -> None:
    """mmcv's read theirs as rows of numbers."""
    model.backbone.conv1 = ConvWS2d(3, 8, 7, stride=2, padding=3, bias=False)


def another_input(model: Any) -> None:
    model.backbone.register_forward_pre_hook(lambda *_: _refuse())


def _refuse() -> None:
    raise RuntimeError('images of 224 x 224 only')


@pytest.mark.parametrize(
    ('change', 'settings', 'message'),
    [
        (in_training_mode, {}, r'training mode.*call model\.eval\(\) first'),
        (norm_in_training_mode, {}, r'backbone\.bn1 \(BatchNorm2d\) is in training mode'),
        (no_statistics, {}, r'backbone\.bn1 .*no running statistics.*fuse_norms=False'),
        (no_weight, {}, r'backbone\.bn1 .*affine=False.*fuse_norms=False'),
        (norm_elsewhere, {}, r'do not follow their convolutions directly.*fuse_norms=False'),
        (
            standardised_weights,
            {'fuse_norms': False},
            r'cannot be brought into channels-last order.*channels_last=False',
        ),
        (another_input, {}, r'224 x 224 only.*fuse_norms=False'),
        (None, {'dtype': 'int8'}, r"one of \['float16', 'bfloat16', 'float32'\], got 'int8'"),
        (None, {'dtype': 'float16'}, r"float16 needs an accelerator.*dtype='bfloat16'"),
    ],
)
def test_refusals_leave_the_model_as_it_was(change: Any, settings: dict, message: str) -> None:
    model = build('segmentor')
    if change is not None:
        change(model)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotPrepareError, match=message):
        mmseg_m2f.prepare_inference(model, **settings)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.backbone.conv1.weight.is_contiguous()
    assert 'predict' not in vars(model)


def test_what_is_no_segmentor_is_refused() -> None:
    with pytest.raises(CannotPrepareError, match=r'Linear is no segmentor.*torch\.autocast'):
        mmseg_m2f.prepare_inference(nn.Linear(2, 2).eval())


@pytest.mark.parametrize('kind', ['stock', 'fcn'])
def test_only_our_network_is_compiled(kind: str) -> None:
    with pytest.raises(CannotPrepareError, match=r'mmseg_m2f\.accelerate\(model\) first'):
        mmseg_m2f.prepare_inference(build(kind), compile=True)


# In a process of its own: the tests' check of shapes wraps every function of the core, which the
# compiler cannot see through. The back end that needs no C++ compiler.
COMPILED = """
import functools, sys
sys.path.insert(0, 'tests/adapters')
import torch
from torch import nn
import mmseg_m2f
import prepared_models as tests

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=backend)
model = tests.build(sys.argv[1])
if sys.argv[1] == 'stock':
    mmseg_m2f.accelerate(model)
values, labels = tests.outputs(model, sys.argv[1])
mmseg_m2f.prepare_inference(model, compile=True)
assert not graphs
found, found_labels = tests.outputs(model, sys.argv[1])
tests.assert_near(found, values, 1e-3)
tests.assert_same_labels([found_labels], [labels])
number = len(graphs)
print('graphs', number)
tests.outputs(model, sys.argv[1])
assert len(graphs) == number
"""


@pytest.mark.parametrize('kind', ['segmentor', 'detector', 'stock'])
def test_the_network_is_compiled(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, '-c', COMPILED, kind], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The backbone and the head.
    assert done.stdout.splitlines()[-1] == 'graphs 2'


class Record(Hook):
    """Label maps of the images, tested or validated, and how the model is then."""

    def __init__(self) -> None:
        self.labels: dict[str, list[Tensor]] = {'test': [], 'val': []}
        self.fused: dict[str, bool] = {}

    def _keep(self, mode: str, runner: Runner, samples: Any) -> None:
        self.labels[mode] += [sample.pred_sem_seg.data.clone() for sample in samples]
        self.fused[mode] = 'backbone.bn1.weight' not in runner.model.state_dict()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._keep('test', runner, outputs)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._keep('val', runner, outputs)


@pytest.fixture(scope='module')
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reduced row, dumped beside its data and a checkpoint."""
    folder = tmp_path_factory.mktemp('row')
    source = ROOT / 'configs/mask2former_r50_ade20k.py'
    path = folder / 'row.py'
    reduced.reduce_config(Config.fromfile(source), folder).dump(path)
    photo = next((folder / 'images/validation').iterdir())
    write_weights(path, photo, range(20))
    return path


def runner_of(row: Path, name: str, *hooks: Any, **options: Any) -> Runner:
    """``hooks`` as a config has them, or built."""
    cfg = Config.fromfile(row)
    cfg.custom_hooks += [hook for hook in hooks if isinstance(hook, dict)]
    cfg.merge_from_dict(options)
    cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(row.parent / name)
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        if not isinstance(hook, dict):
            runner.register_hook(hook)
    return runner


def result_of(row: Path, name: str, *hooks: Any) -> tuple[dict[str, float], Record]:
    record = Record()
    checkpoint = str(row.with_suffix('.pth'))
    return runner_of(row, name, *hooks, record, load_from=checkpoint).test(), record


@pytest.mark.filterwarnings('ignore')
def test_the_hook_acts_after_the_checkpoint_is_loaded(row: Path) -> None:
    expected, plain = result_of(row, 'plain')
    metrics, record = result_of(row, 'prepared', {'type': 'mmseg_m2f.PrepareInferenceHook'})
    assert record.fused == {'test': True}
    assert plain.fused == {'test': False}
    assert len(torch.cat([labels.flatten() for labels in plain.labels['test']]).unique()) > 3
    assert_same_labels(record.labels['test'], plain.labels['test'])
    assert expected['mIoU'] > 0
    assert metrics['mIoU'] == pytest.approx(expected['mIoU'], abs=0.1)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('cast', [False, True], ids=['weights_float32', 'weights_cast'])
def test_the_hook_in_bfloat16(row: Path, cast: bool) -> None:
    seen = []
    hook = {'type': 'mmseg_m2f.PrepareInferenceHook', 'dtype': 'bfloat16', 'cast_weights': cast}

    class Watch(Hook):
        def before_test_epoch(self, runner: Runner) -> None:
            backbone = runner.model.backbone
            assert backbone.conv1.weight.dtype == (torch.bfloat16 if cast else torch.float32)
            backbone.register_forward_hook(lambda _, __, maps: seen.append(maps[0].dtype))

    result_of(row, 'bfloat16', hook, Watch())
    assert set(seen) == {torch.bfloat16}


def test_the_hook_lets_no_training_follow_a_test_with_weights_that_were_cast() -> None:
    settings = {'fuse_norms': False, 'dtype': 'bfloat16', 'cast_weights': True}
    hook = PrepareInferenceHook(**settings)
    runner = SimpleNamespace(model=build('segmentor'), hooks=[hook])
    hook.before_train(runner)
    hook.before_test(runner)
    with pytest.raises(CannotPrepareError, match='has cast the weights of this model'):
        hook.before_train(runner)


@pytest.mark.filterwarnings('ignore')
def test_the_hook_leaves_training_and_validation_alone(row: Path) -> None:
    record = Record()
    runner = runner_of(row, 'training', {'type': 'mmseg_m2f.PrepareInferenceHook'}, record)
    runner.train()
    assert record.fused == {'val': False}
    saved = torch.load(row.parent / 'training/iter_2.pth', weights_only=False)['state_dict']
    assert 'backbone.bn1.running_mean' in saved
    runner.test()
    assert record.fused['test']
    assert_same_labels(record.labels['test'], record.labels['val'])
    # A second test is fine, another training is not.
    runner.test()
    with pytest.raises(CannotPrepareError, match='Train first, or in a runner of its own'):
        runner.train()


@pytest.mark.filterwarnings('ignore')
def test_the_hook_beside_moving_averages(row: Path) -> None:
    hooks = [{'type': 'EMAHook'}, {'type': 'mmseg_m2f.PrepareInferenceHook'}]
    with pytest.raises(CannotPrepareError, match=r'EMAHook exchanges all .*fuse_norms=False\.'):
        result_of(row, 'averages', *hooks)
    hooks[1]['fuse_norms'] = False
    cast = {**hooks[1], 'dtype': 'bfloat16', 'cast_weights': True}
    with pytest.raises(CannotPrepareError, match=r'EMAHook exchanges all .* cast_weights=False\.'):
        result_of(row, 'averages', hooks[0], cast)
    _, plain = result_of(row, 'plain-averages', hooks[0])
    _, record = result_of(row, 'channels-last-averages', *hooks)
    assert_same_labels(record.labels['test'], plain.labels['test'])


def test_the_hook_takes_what_the_function_takes() -> None:
    given = inspect.signature(mmseg_m2f.prepare_inference).parameters
    taken = inspect.signature(PrepareInferenceHook).parameters
    assert {name: value.default for name, value in taken.items()} == {
        name: value.default for name, value in given.items() if name != 'model'
    }


class Losses(Hook):
    """The loss of every iteration."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.values.append(float(outputs['loss']))


def train(row: Path, name: str, *hooks: Any) -> tuple[list[float], Runner]:
    losses = Losses()
    options: dict[str, Any] = {'randomness.seed': 0, 'train_cfg.max_iters': 4}
    options['load_from'] = str(row.with_suffix('.pth'))
    runner = runner_of(row, name, *hooks, losses, **options)
    runner.train()
    return losses.values, runner


@pytest.mark.filterwarnings('ignore')
def test_training_in_channels_last(row: Path) -> None:
    expected, _ = train(row, 'contiguous')
    losses, runner = train(row, 'channels-last', {'type': 'mmseg_m2f.ChannelsLastHook'})
    assert len(losses) == len(set(expected)) == 4
    assert losses == pytest.approx(expected, rel=1e-3)
    weights = [value for value in runner.model.backbone.parameters() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    assert not all(value.is_contiguous() for value in weights)
    optimised = {
        id(value)
        for group in runner.optim_wrapper.optimizer.param_groups
        for value in group['params']
    }
    parameters = list(runner.model.parameters())
    assert optimised <= {id(value) for value in parameters}
    assert optimised >= {id(value) for value in parameters if value.requires_grad}


class Convolution:
    """A training of one convolution by a fused optimiser, as much of a runner as the hook asks."""

    def __init__(self, with_hook: bool, checkpoint: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.backbone = nn.Conv2d(3, 5, 3)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.optim_wrapper = SimpleNamespace(optimizer=optimizer)
        self.hook = ChannelsLastHook() if with_hook else Hook()
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint['state_dict'])
            optimizer.load_state_dict(checkpoint['optimizer'])
        self.hook.before_train(self)

    def step(self, number: int) -> None:
        for seed in range(number):
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            self.optim_wrapper.optimizer.zero_grad()
            self.model.backbone(images).square().sum().backward()
            self.optim_wrapper.optimizer.step()

    def saved(self) -> dict[str, Any]:
        parts = {'state_dict': self.model, 'optimizer': self.optim_wrapper.optimizer}
        checkpoint = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        self.hook.before_save_checkpoint(self, checkpoint)
        return checkpoint


@pytest.mark.parametrize('second', [True, False], ids=['then_with', 'then_without'])
@pytest.mark.parametrize('first', [True, False], ids=['first_with', 'first_without'])
def test_a_resumed_run_goes_on_in_either_order(first: bool, second: bool) -> None:
    straight, started = Convolution(with_hook=False), Convolution(with_hook=first)
    straight.step(3)
    started.step(3)
    resumed = Convolution(second, started.saved())
    straight.step(3)
    resumed.step(3)
    weight = resumed.model.backbone.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == second
    torch.testing.assert_close(weight, straight.model.backbone.weight, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_keeps_the_versions_of_its_modules() -> None:
    training = Convolution(with_hook=True)
    expected = training.model.state_dict()
    saved = training.saved()['state_dict']
    assert saved._metadata == expected._metadata
    assert type(saved) is type(expected)
    assert list(saved) == list(expected)


@pytest.mark.parametrize('before', ['before_train', 'before_val', 'before_test'])
def test_a_model_without_backbone_has_nothing_in_channels_last(before: str) -> None:
    runner = SimpleNamespace(model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r'Linear has no backbone.*custom_hooks'):
        getattr(ChannelsLastHook(), before)(runner)


@pytest.mark.parametrize('before', ['before_val', 'before_test'])
def test_a_test_has_the_order_of_the_training_it_follows(before: str) -> None:
    training, runner = Convolution(with_hook=True), Convolution(with_hook=False)
    getattr(ChannelsLastHook(), before)(runner)
    weight = runner.model.backbone.weight
    assert weight.stride() == training.model.backbone.weight.stride()
    assert weight is runner.optim_wrapper.optimizer.param_groups[0]['params'][0]
