"""Hugging Face's model before and after ``mmseg_m2f.accelerate``: nothing else differs."""

import copy
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip('transformers')

import mmseg_m2f  # noqa: E402
from mmseg_m2f.adapters.acceleration import huggingface, restore  # noqa: E402
from tests.adapters.acceleration.huggingface_models import NUM_LAYERS, batch, build  # noqa: E402


def doubled(data: dict[str, Any]) -> dict[str, Any]:
    masks = [masks.double() for masks in data['mask_labels']]
    return {**data, 'pixel_values': data['pixel_values'].double(), 'mask_labels': masks}


def same_points(*shape: int, **_: Any) -> Tensor:
    """One draw for each number of points, whoever asks and for however many rows."""
    *_, rows, number, _ = (1, *shape) if len(shape) == 2 else shape
    generator = torch.Generator().manual_seed(number)
    points = torch.empty(1, number, 2, dtype=torch.float64).uniform_(generator=generator)
    return points.repeat(rows, 1, 1)


def run(model: nn.Module, data: dict[str, Any], **flags: Any) -> Any:
    with mock.patch.object(torch, 'rand', same_points):
        return model(**data, **flags)


def assert_near(ours: Tensor, theirs: Tensor, share: float) -> None:
    assert ours.shape == theirs.shape
    extent = (theirs.max() - theirs.min()).item()
    assert extent > 0
    assert (ours - theirs).abs().max().item() <= share * extent


def said_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == 'mmseg_m2f']


@torch.no_grad()
@pytest.mark.parametrize('auxiliary', [False, True])
def test_outputs(auxiliary: bool) -> None:
    """All fields, the last states among them."""
    model, images = build(), batch()['pixel_values']
    flags = {'output_auxiliary_logits': auxiliary}
    theirs = model(images, **flags)
    assert mmseg_m2f.accelerate(model) is model
    ours = model(images, **flags)
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name in set(ours) - {'auxiliary_logits'}:
        assert_near(ours[name], theirs[name], 1e-4)
    for one, other in zip(ours.auxiliary_logits or (), theirs.auxiliary_logits or (), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert_near(one[name], other[name], 1e-4)
    assert len(ours.auxiliary_logits or ()) == NUM_LAYERS * auxiliary


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
@pytest.mark.parametrize('settings', [{}, {'class_weight': 1.5, 'mask_weight': 3.0}])
def test_loss_and_gradients(settings: dict[str, float], points: str) -> None:
    """In float64, so that rounding decides no match; with class weights of the user's own."""
    model, data = build(**settings).double().train(), doubled(batch())
    model.criterion.empty_weight[3] = 2.0
    theirs = run(model, data)
    theirs.loss.backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    ours = run(mmseg_m2f.accelerate(model, points=points), data)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert_near(ours.masks_queries_logits, theirs.masks_queries_logits, 1e-6)
    ours.loss.backward()
    largest = max(grad.abs().max() for grad in expected.values() if grad is not None)
    for name, value in model.named_parameters():
        assert (value.grad is None) == (expected[name] is None), name
        if value.grad is not None:
            assert (value.grad - expected[name]).abs().max() <= 1e-6 * largest, name


def test_images_without_any_target() -> None:
    model, data = build().double(), doubled(batch())
    data['mask_labels'] = [masks[:0] for masks in data['mask_labels']]
    data['class_labels'] = [labels[:0] for labels in data['class_labels']]
    theirs = run(model, data).loss.item()
    assert run(mmseg_m2f.accelerate(model), data).loss.item() == pytest.approx(theirs, rel=1e-6)


def test_their_normaliser_holds_over_several_processes() -> None:
    """Where it is not the mean over the processes: half of ours doubles the mask losses."""
    model, data = build().double(), doubled(batch())
    mmseg_m2f.accelerate(model)
    plain = run(model, data).loss
    numbers = {'loss_mask': 0.0, 'loss_dice': 0.0}
    model.weight_dict |= numbers
    cls = run(model, data).loss
    model.weight_dict |= dict.fromkeys(numbers, 5.0)
    own = model.criterion.get_num_masks
    with (
        mock.patch.object(huggingface.dist, 'is_initialized', return_value=True),
        mock.patch.object(huggingface, 'global_num_masks', lambda count, _: torch.tensor(count)),
        mock.patch.object(model.criterion, 'get_num_masks', lambda *args: own(*args) / 2),
        mock.patch('torch.distributed.all_reduce'),
        mock.patch('torch.distributed.get_world_size', return_value=1),
    ):
        halved = run(model, data).loss
    assert (halved - cls).item() == pytest.approx(2 * (plain - cls).item(), rel=1e-6)


def test_their_processor_reads_the_output() -> None:
    model, images = mmseg_m2f.accelerate(build()), batch()['pixel_values']
    processor = transformers.Mask2FormerImageProcessor()
    with torch.no_grad():
        ours, theirs = model(images), restore(model)(images)
    sizes = [(50, 70)] * 2
    for one, other in zip(
        processor.post_process_semantic_segmentation(ours, target_sizes=sizes),
        processor.post_process_semantic_segmentation(theirs, target_sizes=sizes),
        strict=True,
    ):
        assert one.shape == (50, 70)
        assert torch.equal(one, other)
    found, expected = (
        processor.post_process_panoptic_segmentation(side, threshold=0.1, target_sizes=sizes)
        for side in (ours, theirs)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one['segmentation'], other['segmentation'])


def test_a_training_goes_on_and_its_checkpoint_is_stock(tmp_path: Path) -> None:
    model, data = build(), batch()
    parameters, state = dict(model.named_parameters()), model.state_dict()
    modules, rng = [name for name, _ in model.named_modules()], torch.get_rng_state()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert mmseg_m2f.accelerate(model) is model
    assert torch.equal(torch.get_rng_state(), rng)
    assert [name for name, _ in model.named_modules()] == modules
    assert list(model.state_dict()) == list(state)
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())

    before = model(**data).loss
    before.backward()
    optimiser.step()
    model.eval().save_pretrained(tmp_path)
    stock = type(model).from_pretrained(tmp_path).eval()
    trained = model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in stock.state_dict().items())
    with torch.no_grad():
        ours, theirs = model(data['pixel_values']), stock(data['pixel_values'])
    assert_near(ours.masks_queries_logits, theirs.masks_queries_logits, 1e-4)
    mmseg_m2f.accelerate(stock)


def test_a_copy_has_weights_of_its_own() -> None:
    model, images = mmseg_m2f.accelerate(build()), batch()['pixel_values']
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(images).masks_queries_logits
        for value in model.parameters():
            value.mul_(1.1)
        assert torch.equal(twin(images).masks_queries_logits, expected)
        assert not torch.equal(model(images).masks_queries_logits, expected)


def test_the_signature_is_theirs() -> None:
    """Their Trainer drops the columns of a data set that it does not find there."""
    model = build()
    theirs = list(inspect.signature(model.forward).parameters)
    assert list(inspect.signature(mmseg_m2f.accelerate(model).forward).parameters) == theirs


FALLBACKS = [
    ({'output_hidden_states': True}, 'output_hidden_states asks for what our parts do not keep'),
    ({'output_attentions': True}, 'output_attentions asks for what our parts do not keep'),
    ({'return_dict': False}, 'return_dict=False'),
]


@torch.no_grad()
@pytest.mark.parametrize(('flags', 'reason'), FALLBACKS)
def test_what_ours_do_not_keep_is_computed_by_theirs(
    flags: dict[str, bool], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, images = build(), batch()['pixel_values']
    theirs = model(images, **flags)
    mmseg_m2f.accelerate(model)
    for _ in range(2):
        ours = model(images, **flags)
    assert len(ours) == len(theirs)
    assert torch.equal(ours[0], theirs[0])
    assert said_by(caplog) == [
        f'not accelerated, the stock path computes: {reason}. This is said once.'
    ]


def soft(data: dict[str, Any]) -> None:
    data['mask_labels'][0][0, 0, 0] = 0.5


def several_sizes(data: dict[str, Any]) -> None:
    data['mask_labels'][1] = data['mask_labels'][1][:, :32]


@pytest.mark.parametrize(
    ('change', 'reason'),
    [(soft, 'other values than 0 and 1'), (several_sizes, 'mask_labels of several sizes')],
)
def test_labels_that_ours_would_change(
    change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = build(), batch()
    change(data)
    with mock.patch.object(torch, 'rand', lambda *shape, **_: same_points(*shape).float()):
        theirs = model(**data).loss
        ours = mmseg_m2f.accelerate(model)(**data).loss
    assert torch.equal(ours, theirs)
    assert any(reason in line for line in said_by(caplog))


def test_checkpointing_and_hooks_send_to_the_stock_path(caplog: pytest.LogCaptureFixture) -> None:
    model, data = mmseg_m2f.accelerate(build()), batch()
    decoder = model.model.transformer_module.decoder
    decoder.gradient_checkpointing = True
    model.train()(**data)
    decoder.gradient_checkpointing = False
    heard: list[Tensor] = []
    decoder.layers[0].fc1.register_forward_hook(lambda *args: heard.append(args[2]))
    model.eval()(data['pixel_values'])
    assert len(heard) == 1
    assert [line.split(': ')[1].split('.')[0] for line in said_by(caplog)] == [
        'gradient checkpointing of the decoder',
        'model',
    ]


def test_no_openmmlab_is_needed() -> None:
    """Nor loaded; and importing the package loads nothing at all."""
    code = (
        'import sys, mmseg_m2f\n'
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
        'import torch, transformers as t\n'
        "stages = ['stage1', 'stage2', 'stage3', 'stage4']\n"
        'backbone = t.ResNetConfig(hidden_sizes=[32] * 4, depths=[1] * 4, out_features=stages)\n'
        'small = dict(encoder_layers=1, decoder_layers=2)\n'
        'config = t.Mask2FormerConfig(backbone_config=backbone, **small)\n'
        'model = t.Mask2FormerForUniversalSegmentation(config)\n'
        'assert mmseg_m2f.accelerate(model) is model\n'
        "assert not {'mmengine', 'mmcv', 'mmseg', 'mmdet'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
