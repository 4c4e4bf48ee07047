"""``mmseg_m2f.accelerate`` changes no number of a stock model of mmseg or mmdet."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

import mmseg_m2f
from mmseg_m2f.adapters.acceleration import is_accelerated, restore
from mmseg_m2f.adapters.acceleration.twin import SemanticTwin
from tests import reduced
from tests.adapters.stock_models import (
    batch,
    build,
    head_of,
    logits,
    losses,
    results,
    segmentor_config,
)
from tests.parity.stock_heads import float64_positions, segments

of_both = pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
# Models are compared in float64, so that rounding decides no attention mask and no match: some
# hundred layers of 2e-16 each, and sums of up to 1e4 products.
BOUND = 1e-10
# mmdet adds this to the divisor of a loss; 0.1 in float32, the weight of no object, is off by less.
LOSS_BOUND = torch.finfo(torch.float32).eps


@pytest.fixture
def exact() -> Iterator[None]:
    with float64_positions():
        yield


def remove_the_pixels_of_a_target(data: dict) -> None:
    """Empty a mask in a batch of mmdet, as crops do. mmdet's losses still count it."""
    sample = max(data['data_samples'], key=lambda sample: len(sample.gt_instances))
    sample.gt_instances = copy.deepcopy(sample.gt_instances)
    sample.gt_instances.masks.masks[0] = 0


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    extent = (theirs.max() - theirs.min()).item()
    assert extent > 0
    assert (ours - theirs).abs().max().item() <= BOUND * extent


@of_both
@pytest.mark.usefixtures('exact')
def test_logits_of_all_predictions_stay(package: str) -> None:
    model, data = build(package).double(), batch(package)
    theirs = logits(model, data)
    assert mmseg_m2f.accelerate(model) is model
    for one, other in zip(logits(model, data), theirs, strict=True):
        for found, expected in zip(one, other, strict=True):
            assert expected.std() > 0.1
            assert_near(found, expected)


@of_both
@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
def test_losses_and_their_gradients_stay(package: str, points: str) -> None:
    model, data = build(package).double().train(), batch(package)
    if package == 'mmdet':
        remove_the_pixels_of_a_target(data)
    theirs = losses(model, data)
    sum(theirs.values()).backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    ours = losses(mmseg_m2f.accelerate(model, points=points), data)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name].item(), rel=LOSS_BOUND)
    sum(ours.values()).backward()
    for name, value in model.named_parameters():
        assert (value.grad is None) == (expected[name] is None), name
        if value.grad is not None:
            limit = LOSS_BOUND * expected[name].abs().max()
            assert (value.grad - expected[name]).abs().max() <= limit, name


@pytest.mark.usefixtures('exact')
def test_results_of_a_segmentor_stay() -> None:
    model, data = build('mmseg').double(), batch('mmseg')
    with torch.no_grad():  # otherwise all queries give the same class
        model.decode_head.mask_embed[4].weight.mul_(4)
        model.decode_head.mask_embed[4].bias.zero_()
        model.decode_head.cls_embed.weight.mul_(4)
        model.decode_head.cls_embed.bias.sub_(logits(model, data)[0][-1].mean((0, 1)))
    theirs = results(model, data)
    ours = results(mmseg_m2f.accelerate(model), data)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
    assert len(torch.cat([sample.pred_sem_seg.data for sample in ours]).unique()) > 2


@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('filter_low_score', [True, False])
def test_results_of_a_detector_stay(filter_low_score: bool, rescale: bool) -> None:
    model, data = build('mmdet').double(), batch('mmdet')
    for sample in data['data_samples']:
        sample.set_metainfo({'ori_shape': (70, 110)})
    model.panoptic_fusion_head.test_cfg.filter_low_score = filter_low_score
    theirs = results(model, data, rescale=rescale)
    ours = results(mmseg_m2f.accelerate(model), data, rescale=rescale)
    for pair in zip(ours, theirs, strict=True):
        found, expected = (segments(sample.pred_panoptic_seg.sem_seg) for sample in pair)
        assert found == expected
        assert len(found) > 1
        # mmdet's instances have no order.
        instances = [sample.pred_instances for sample in pair]
        one, other = (side[side.scores.sort(descending=True).indices] for side in instances)
        assert len(one) == len(other) > 5
        # Scores leave mmdet and us in float32, whatever the model.
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-6, atol=0, check_dtype=False)
        for field in ('labels', 'masks', 'bboxes'):
            assert torch.equal(one[field], other[field])


@of_both
def test_parameters_and_state_stay_what_they_are_and_restore_takes_it_back(package: str) -> None:
    model, wrapper, data = build(package), nn.Module(), batch(package)
    wrapper.module = model
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    theirs, rng = logits(model, data)[1][-1], torch.get_rng_state()

    assert mmseg_m2f.accelerate(wrapper) is wrapper
    assert torch.equal(torch.get_rng_state(), rng)
    assert is_accelerated(model)
    assert is_accelerated(wrapper)
    assert not any('forward' in vars(module) for module in model.backbone.modules())
    assert list(attributes) == [name for name, _ in model.named_modules()]
    found = dict(model.named_parameters())
    assert list(found) == list(parameters)
    assert all(found[name] is value for name, value in parameters.items())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())

    assert restore(model) is model
    assert not is_accelerated(model)
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(logits(model, data)[1][-1], theirs)
    mmseg_m2f.accelerate(model)


@of_both
@pytest.mark.usefixtures('exact')
def test_a_training_goes_on_and_its_checkpoint_is_stock(package: str) -> None:
    """The optimizer holds the parameters from before."""
    model, data = build(package).double(), batch(package)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = logits(model, data)[0][-1]
    sum(losses(mmseg_m2f.accelerate(model).train(), data).values()).backward()
    optimizer.step()
    after = logits(model.eval(), data)
    assert (after[0][-1] - before).abs().max() > 1e-2
    stock = build(package).double()
    stock.load_state_dict(model.state_dict())
    for ours, theirs in zip(after, logits(stock, data), strict=True):
        assert_near(ours[-1], theirs[-1])


@pytest.mark.usefixtures('exact')
def test_loaded_weights_are_used() -> None:
    """They may come as new parameter objects."""
    model, other, data = build('mmseg').double(), build('mmseg').double(), batch('mmseg')
    mmseg_m2f.accelerate(model)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)
    model.load_state_dict(other.state_dict(), assign=True)
    assert_near(logits(model, data)[1][-1], logits(other, data)[1][-1])


def test_a_copy_has_weights_of_its_own(tmp_path: Path) -> None:
    """MMEngine's moving averages copy the model; ``torch.save`` may hold all of it."""
    model, data = mmseg_m2f.accelerate(build('mmdet')), batch('mmdet')
    expected = logits(model, data)[1][-1]
    torch.save(model, tmp_path / 'model.pth')
    copies = [copy.deepcopy(model), torch.load(tmp_path / 'model.pth', weights_only=False)]
    with torch.no_grad():
        model.panoptic_head.mask_embed[4].weight.mul_(2)
    for twin in copies:
        assert is_accelerated(twin)
        assert torch.equal(logits(twin, data)[1][-1], expected)
    assert not torch.equal(logits(model, data)[1][-1], expected)


@of_both
def test_class_weights_follow_the_model_to_its_device(package: str) -> None:
    model = mmseg_m2f.accelerate(build(package))
    twin = head_of(model).forward.__self__
    assert any('class_weight' in name for name, _ in twin.ours.named_buffers())
    model.to('meta')
    assert twin.ready()
    found = [*twin.ours.parameters(), *twin.ours.buffers()]
    assert {value.device.type for value in found} == {'meta'}


# The runner's and the stock pipeline's own.
@pytest.mark.filterwarnings('ignore')
def test_the_hook_in_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run trains two iterations and tests; its checkpoint is the stock model's."""
    cfg = reduced.shorten(segmentor_config(num_classes=150), tmp_path, 'run')
    cfg.custom_hooks = [{'type': 'mmseg_m2f.AccelerateHook'}, {'type': 'mmseg_m2f.HeadConfigHook'}]
    del cfg.default_hooks.visualization
    seen, original = [], SemanticTwin.loss
    monkeypatch.setattr(SemanticTwin, 'loss', lambda *x: seen.append(original(*x)) or seen[-1])
    assert 'mIoU' in reduced.train_and_test(cfg)
    first, second = seen
    assert first['loss_cls'] != second['loss_cls']
    assert (tmp_path / 'run/head_config.json').exists()
    saved = torch.load(tmp_path / 'run/iter_2.pth', weights_only=False)['state_dict']
    assert saved.keys() == build('mmseg', num_classes=150).state_dict().keys()
