"""The official code's files, from lists of names that were written out apart from our key maps."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mmseg_m2f.checkpoints import detect_layout, to_ours, to_theirs
from tests.checkpoints.published_names import BACKBONES, detectron2, random_state

pytest.importorskip('mmseg')

from tests.checkpoints.our_models import build_segmentor, last_logits

State = dict[str, Tensor]


@pytest.fixture(scope='module', params=BACKBONES)
def published(request: pytest.FixtureRequest) -> State:
    return random_state(detectron2(request.param))


@pytest.fixture(scope='module')
def model(published: State) -> nn.Module:
    return build_segmentor('r50' if 'backbone.stem.conv1.weight' in published else 'swin-t')


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_every_name_of_the_model_is_matched(published: State, model: nn.Module) -> None:
    assert detect_layout(published) == 'detectron2'
    ours = to_ours(published, 'detectron2')
    state = model.state_dict()
    assert ours.keys() == state.keys()
    assert all(ours[key].shape == value.shape for key, value in state.items())
    # Nothing is made up and nothing lost but buffers and the losses' class weights.
    assert number_of_weights(ours) == number_of_weights(published)
    for key in state:
        if key.endswith('relative_position_index'):
            # The file's own, nonsense here, is not believed.
            assert torch.equal(ours[key], state[key])


def number_of_weights(state: State) -> int:
    buffers = ('relative_position_index', 'num_batches_tracked', 'empty_weight')
    return sum(value.numel() for key, value in state.items() if not key.endswith(buffers))


def test_there_and_back(published: State) -> None:
    """Today's code calls the queries ``query_feat``; what it computes anew is not in our file."""
    expected = {
        key.replace('static_query', 'query_feat'): value
        for key, value in published.items()
        if not key.endswith(('empty_weight', 'relative_position_index'))
    }
    for head in ('decode_head', 'panoptic_head'):
        ours = to_ours(published, 'detectron2', head)
        assert_same(to_theirs(ours, 'detectron2'), expected)
        assert_same(to_ours(expected, 'detectron2', head), ours)


@pytest.mark.parametrize(
    ('spelling', 'other'),
    [
        (r'predictor\.static_query', 'predictor.query_feat'),
        # Before the pixel decoder had a name of its own.
        (r'^sem_seg_head\.pixel_decoder\.', 'sem_seg_head.'),
        # After loading without the version number, which a converted file has lost.
        (r'^sem_seg_head\.pixel_decoder\.', 'sem_seg_head.pixel_decoder.pixel_decoder.'),
    ],
)
def test_other_spellings(published: State, spelling: str, other: str) -> None:
    respelled = {re.sub(spelling, other, key): value for key, value in published.items()}
    assert respelled.keys() != published.keys()
    assert detect_layout(respelled) == 'detectron2'
    assert_same(to_ours(respelled, 'detectron2'), to_ours(published, 'detectron2'))


def test_what_is_left_out(published: State) -> None:
    left_out = {
        'pixel_mean': torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        'pixel_std': torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        'backbone.stem.conv1.norm.num_batches_tracked': torch.tensor(5),
    }
    assert_same(to_ours(published | left_out, 'detectron2'), to_ours(published, 'detectron2'))


@torch.no_grad()
def test_every_module_matters(published: State, model: nn.Module) -> None:
    """A change to one tensor of each module in the published file changes what the model says."""
    images = torch.randn(1, 3, 64, 64)
    ours = to_ours(published, 'detectron2')
    model.load_state_dict(ours)
    maps = model.extract_feat(images)
    before = last_logits(model, maps)

    def logits(name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        converted = to_ours(published | {name: value}, 'detectron2')
        with changed_tensors(model, ours, converted):
            own_maps = model.extract_feat(images) if name.startswith('backbone.') else maps
            return last_logits(model, own_maps)

    dropped = ('relative_position_index', 'empty_weight')
    names = sample_of_each_module(key for key in published if not key.endswith(dropped))
    assert len(names) > 30
    for name in names:
        change = 0.5 * published[name].abs().mean() * torch.rand_like(published[name])
        after = logits(name, published[name] + change)
        difference = max((x - y).abs().max().item() for x, y in zip(before, after, strict=True))
        assert difference > 1e-5, name
    after = logits('criterion.empty_weight', torch.zeros(3))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@contextmanager
def changed_tensors(model: nn.Module, before: State, after: State) -> Iterator[None]:
    """The model with ``after`` for ``before``: loads those that differ, far faster than all."""
    state = model.state_dict()
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    for key in changed:
        state[key].copy_(after[key])
    yield
    for key in changed:
        state[key].copy_(before[key])


def sample_of_each_module(names: Iterable[str]) -> list[str]:
    """One tensor of those modules that differ in their place only, now early and now late."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r'\.(res)?\d+\b', '.#', name.rpartition('.')[0]), []).append(name)
    return [group[7 * i % len(group)] for i, group in enumerate(kinds.values())]


def test_a_name_that_is_there_twice() -> None:
    state = {
        f'sem_seg_head.predictor.{name}.weight': torch.zeros(2, 4)
        for name in ('static_query', 'query_feat')
    }
    with pytest.raises(
        ValueError, match=r'static_query\.weight and .*query_feat\.weight are both our decode'
    ):
        to_ours(state, 'detectron2')


def test_a_resnet_of_caffe_is_refused() -> None:
    """Its names or the deviation of the images tell; the weights would fit and be wrong."""
    caffe2 = {'conv1_w': torch.zeros(1), 'res2_0_branch2a_w': torch.zeros(1)}
    with pytest.raises(ValueError, match='ResNet of Caffe'):
        detect_layout(caffe2)
    model = {'backbone.res2.0.conv1.weight': torch.zeros(1), 'pixel_std': torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match='ResNet of Caffe'):
        to_ours(model, 'detectron2')
