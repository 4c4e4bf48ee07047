"""Checkpoints for another order of classes, or other numbers of classes and queries."""

import math

import pytest
import torch
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.metadata import load_metadata


def checkpoint(head: str = 'decode_head') -> dict[str, Tensor]:
    """Class rows hold their own number, the no-object row the last: 5."""
    rows = torch.arange(6.0)
    return {
        f'{head}.decoder.class_embed.weight': rows[:, None].expand(-1, 4).clone(),
        f'{head}.decoder.class_embed.bias': rows,
        f'{head}.decoder.query_feat.weight': torch.randn(100, 4),
        f'{head}.decoder.query_embed.weight': torch.randn(100, 4),
        'backbone.conv1.weight': torch.randn(2, 3),
    }


def class_rows(state: dict[str, Tensor], head: str = 'decode_head') -> list[float]:
    weight = state[f'{head}.decoder.class_embed.weight']
    bias = state[f'{head}.decoder.class_embed.bias']
    assert torch.equal(weight, bias[:, None].expand_as(weight))
    return bias.tolist()


@pytest.mark.parametrize('head', ['decode_head', 'panoptic_head'])
def test_class_rows_in_another_order(head: str) -> None:
    state = checkpoint(head)
    changed = checkpoints.reorder_classes(state, [3, 0, 4, 1, 2])
    assert class_rows(changed, head) == [3, 0, 4, 1, 2, 5]
    assert class_rows(state, head) == [0, 1, 2, 3, 4, 5]
    assert all(changed[key] is state[key] for key in state if 'class_embed' not in key)
    back = checkpoints.reorder_classes(changed, [1, 3, 4, 0, 2])
    assert class_rows(back, head) == [0, 1, 2, 3, 4, 5]


def test_ade20k_things_first_is_mmdets_order() -> None:
    """The names agree; a few have another word there, which names no other class of ours."""
    datasets = pytest.importorskip('mmdet.datasets.ade20k')
    published = datasets.ADE20KPanopticDataset.METAINFO['classes']
    metadata = load_metadata('ade20k')
    order = checkpoints.things_first(metadata.thing_ids, len(metadata.classes))
    ours = [metadata.classes[index].split(',')[0].strip() for index in order]
    names = [name.split(',')[0].strip() for name in published]
    other_words = {word for name, word in zip(ours, names, strict=True) if name != word}
    assert len(other_words) < 10
    assert not other_words & set(ours)
    assert checkpoints.things_first([4, 1], 5) == [1, 4, 0, 2, 3]


def test_queries_are_cut_or_copied_with_noise() -> None:
    state = checkpoint()
    fewer, equal, more = (checkpoints.resize_queries(state, number) for number in (40, 100, 250))
    for name in ('query_feat', 'query_embed'):
        key = f'decode_head.decoder.{name}.weight'
        old, new = state[key], more[key]
        assert torch.equal(fewer[key], old[:40])
        assert torch.equal(equal[key], old)
        assert torch.equal(new[:100], old)
        noise = new[100:] - old[[*range(100), *range(50)]]
        assert noise.std().item() == pytest.approx(0.1 * old.std().item(), rel=0.1)
        # No two queries are alike, not even two copies of one.
        assert len(new.unique(dim=0)) == 250
    assert more['backbone.conv1.weight'] is state['backbone.conv1.weight']


def test_class_rows_keep_no_object_last() -> None:
    state = checkpoint()
    assert class_rows(checkpoints.resize_classes(state, 2)) == [0, 1, 5]
    assert class_rows(checkpoints.resize_classes(state, 5)) == [0, 1, 2, 3, 4, 5]
    more = checkpoints.resize_classes(state, 12, noise=0.0)
    assert class_rows(more) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 5]
    key = 'decode_head.decoder.class_embed.weight'
    noisy = checkpoints.resize_classes(state, 12)[key]
    assert torch.equal(noisy[[0, 1, 2, 3, 4, -1]], state[key])
    assert not torch.equal(noisy[5], noisy[0])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        *(
            (lambda order=order: checkpoints.reorder_classes(checkpoint(), order), 'each of the 5')
            for order in ([0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 5], range(6))
        ),
        *(
            (lambda things=things: checkpoints.things_first(things, 5), 'different classes of 5')
            for things in ([5], [1, 1], [-1])
        ),
        (lambda: checkpoints.resize_queries(checkpoint(), 0), 'cannot make 0 rows'),
        (lambda: checkpoints.resize_classes(checkpoint(), 0), 'cannot make 0 rows'),
        (
            lambda: checkpoints.resize_queries({'decode_head.decoder.norm.bias': torch.ones(1)}, 3),
            r'does not hold decode_head\.decoder\.query',
        ),
        (lambda: checkpoints.resize_window(torch.randn(169, 3), 100), r'\(2 M - 1\)\^2 rows, not'),
    ],
)
def test_what_cannot_be_changed_so(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def cubic_matrix(old: int, new: int) -> Tensor:
    """``(new, old)`` weights of cubic convolution, a = -3/4, between centers of cells.

    Source: Keys, 1981; beyond the borders the last value goes on.
    """

    def kernel(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        first = math.floor(place) - 1
        for column in range(first, first + 4):
            matrix[row, min(max(column, 0), old - 1)] += kernel(place - column)
    return matrix


@pytest.mark.parametrize(('old', 'new'), [(7, 12), (12, 7), (2, 3), (7, 7)])
def test_a_bias_of_positions_is_resized_by_the_bicubic_formula(old: int, new: int) -> None:
    """The table is random, because a smooth one comes out almost the same by any rule."""
    table = torch.randn((2 * old - 1) ** 2, 3)
    resized = checkpoints.resize_window(table, (2 * new - 1) ** 2)
    weights = cubic_matrix(2 * old - 1, 2 * new - 1)
    maps = table.double().reshape(2 * old - 1, 2 * old - 1, 3)
    expected = torch.einsum('yi,xj,ijh->yxh', weights, weights, maps).flatten(0, 1)
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-5)
