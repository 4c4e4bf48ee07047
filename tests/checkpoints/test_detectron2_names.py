"""The official code's files, from lists of names that were written out apart from our key maps."""

import re

import pytest
import torch
from torch import Tensor, nn

from mmseg_m2f.checkpoints import detect_layout, to_ours, to_theirs
from tests.checkpoints.published_names import (
    BACKBONES,
    State,
    assert_same,
    detectron2,
    random_state,
)

pytest.importorskip('mmseg')

from tests.checkpoints.our_models import build_segmentor


@pytest.fixture(scope='module', params=BACKBONES)
def published(request: pytest.FixtureRequest) -> State:
    return random_state(detectron2(request.param))


@pytest.fixture(scope='module')
def model(published: State) -> nn.Module:
    return build_segmentor('r50' if 'backbone.stem.conv1.weight' in published else 'swin-t')


def test_every_name_of_the_model_is_matched(published: State, model: nn.Module) -> None:
    assert detect_layout(published) == 'detectron2'
    ours = to_ours(published, 'detectron2')
    state = model.state_dict()
    assert ours.keys() == state.keys()
    assert all(ours[key].shape == value.shape for key, value in state.items())
    # Nothing is made up and nothing lost but buffers and the losses' class weights.
    assert number_of_weights(ours) == number_of_weights(published)
    # The file's own index, nonsense here, is not believed.
    indices = [key for key in state if key.endswith('relative_position_index')]
    assert all(torch.equal(ours[key], state[key]) for key in indices)


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
    left_out = {
        'pixel_mean': torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        'pixel_std': torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        'backbone.stem.conv1.norm.num_batches_tracked': torch.tensor(5),
    }
    for head in ('decode_head', 'panoptic_head'):
        ours = to_ours(published, 'detectron2', head)
        assert_same(to_theirs(ours, 'detectron2'), expected)
        assert_same(to_ours(expected | left_out, 'detectron2', head), ours)


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


@torch.no_grad()
def test_every_module_matters(published: State, model: nn.Module) -> None:
    """A change to one tensor of each module in the published file changes what the model says."""
    images = torch.randn(1, 3, 64, 64)
    ours = to_ours(published, 'detectron2')

    def logits(name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        changed = to_ours(published | {name: value}, 'detectron2')
        return torch.func.functional_call(model, changed, images)

    before = torch.func.functional_call(model, ours, images)
    # One tensor of those modules that differ in their place only, now early and now late.
    kinds: dict[str, list[str]] = {}
    for name in published:
        if not name.endswith(('relative_position_index', 'empty_weight')):
            kind = re.sub(r'\.(res)?\d+\b', '.#', name.rpartition('.')[0])
            kinds.setdefault(kind, []).append(name)
    assert len(kinds) > 30
    for index, group in enumerate(kinds.values()):
        name = group[7 * index % len(group)]
        change = 0.5 * published[name].abs().mean() * torch.rand_like(published[name])
        after = logits(name, published[name] + change)
        difference = max((x - y).abs().max().item() for x, y in zip(before, after, strict=True))
        assert difference > 1e-5, name
    after = logits('criterion.empty_weight', torch.zeros(3))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_what_is_refused() -> None:
    """A name that is there twice, and a ResNet of Caffe, whose weights would fit and be wrong."""
    twice = {
        f'sem_seg_head.predictor.{name}.weight': torch.zeros(2, 4)
        for name in ('static_query', 'query_feat')
    }
    both = r'static_query\.weight and .*query_feat\.weight are both our decode'
    with pytest.raises(ValueError, match=both):
        to_ours(twice, 'detectron2')
    caffe2 = {'conv1_w': torch.zeros(1), 'res2_0_branch2a_w': torch.zeros(1)}
    with pytest.raises(ValueError, match='ResNet of Caffe'):
        detect_layout(caffe2)
    model = {'backbone.res2.0.conv1.weight': torch.zeros(1), 'pixel_std': torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match='ResNet of Caffe'):
        to_ours(model, 'detectron2')
