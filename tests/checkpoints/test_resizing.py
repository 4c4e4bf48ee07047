"""Checkpoints for another order of classes, or other numbers of classes and queries."""

import math

import pytest
import torch
from torch import Tensor

from mmseg_m2f.checkpoints import (
    reorder_classes,
    resize_classes,
    resize_queries,
    resize_window,
    things_first,
)
from mmseg_m2f.metadata import load_metadata

CHANNELS = 4


def checkpoint(num_classes: int = 5, num_queries: int = 6, head: str = 'decode_head') -> dict:
    """Class rows hold their own number, the no-object row the last."""
    rows = torch.arange(num_classes + 1.0)
    return {
        f'{head}.decoder.class_embed.weight': rows[:, None].expand(-1, CHANNELS).clone(),
        f'{head}.decoder.class_embed.bias': rows,
        f'{head}.decoder.query_feat.weight': torch.randn(num_queries, CHANNELS),
        f'{head}.decoder.query_embed.weight': torch.randn(num_queries, CHANNELS),
        'backbone.conv1.weight': torch.randn(2, 3),
    }


def class_rows(state: dict[str, Tensor], head: str = 'decode_head') -> list[float]:
    weight = state[f'{head}.decoder.class_embed.weight']
    bias = state[f'{head}.decoder.class_embed.bias']
    assert torch.equal(weight, bias[:, None].expand_as(weight))
    return bias.tolist()


@pytest.mark.parametrize('head', ['decode_head', 'panoptic_head'])
def test_class_rows_in_another_order(head: str) -> None:
    state = checkpoint(head=head)
    changed = reorder_classes(state, [3, 0, 4, 1, 2])
    assert class_rows(changed, head) == [3, 0, 4, 1, 2, 5]
    assert class_rows(state, head) == [0, 1, 2, 3, 4, 5]
    others = state.keys() - {key for key in state if 'class_embed' in key}
    assert all(changed[key] is state[key] for key in others)
    back = reorder_classes(changed, [1, 3, 4, 0, 2])
    assert class_rows(back, head) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 5], range(6)])
def test_an_order_names_every_class_once(order) -> None:
    with pytest.raises(ValueError, match='each of the 5 classes once'):
        reorder_classes(checkpoint(), order)


def test_ade20k_things_first_is_mmdets_order() -> None:
    """The names agree; a few have another word there, which names no other class of ours."""
    datasets = pytest.importorskip('mmdet.datasets.ade20k')
    published = datasets.ADE20KPanopticDataset.METAINFO['classes']
    metadata = load_metadata('ade20k')
    order = things_first(metadata.thing_ids, len(metadata.classes))
    ours = [metadata.classes[index].split(',')[0].strip() for index in order]
    names = [name.split(',')[0].strip() for name in published]
    other_words = {word for name, word in zip(ours, names, strict=True) if name != word}
    assert len(other_words) < 10
    assert not other_words & set(ours)


def test_things_first_checks_the_things() -> None:
    assert things_first([4, 1], 5) == [1, 4, 0, 2, 3]
    for wrong in ([5], [1, 1], [-1]):
        with pytest.raises(ValueError, match='not different classes of 5'):
            things_first(wrong, 5)


def test_queries_are_cut_or_copied_with_noise() -> None:
    state = checkpoint(num_queries=100)
    fewer, same, more = (resize_queries(state, number) for number in (40, 100, 250))
    for name in ('query_feat', 'query_embed'):
        key = f'decode_head.decoder.{name}.weight'
        old, new = state[key], more[key]
        assert torch.equal(fewer[key], old[:40])
        assert torch.equal(same[key], old)
        assert torch.equal(new[:100], old)
        noise = new[100:] - old[[*range(100), *range(50)]]
        assert noise.std().item() == pytest.approx(0.1 * old.std().item(), rel=0.1)
        # No two queries are alike, not even two copies of one.
        assert len(new.unique(dim=0)) == 250
    assert more['backbone.conv1.weight'] is state['backbone.conv1.weight']


def test_class_rows_keep_no_object_last() -> None:
    state = checkpoint()
    assert class_rows(resize_classes(state, 2)) == [0, 1, 5]
    assert class_rows(resize_classes(state, 5)) == [0, 1, 2, 3, 4, 5]
    more = resize_classes(state, 12, noise=0.0)
    assert class_rows(more) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 5]
    noisy = resize_classes(state, 12)['decode_head.decoder.class_embed.weight']
    assert torch.equal(noisy[:5], state['decode_head.decoder.class_embed.weight'][:5])
    assert torch.equal(noisy[-1], state['decode_head.decoder.class_embed.weight'][-1])
    assert not torch.equal(noisy[5], noisy[0])


@pytest.mark.parametrize('resize', [resize_queries, resize_classes])
def test_what_cannot_be_resized(resize) -> None:
    with pytest.raises(ValueError, match='cannot make 0 rows'):
        resize(checkpoint(), 0)
    with pytest.raises(ValueError, match=r'does not hold decode_head\.decoder\.(query|class)'):
        resize({'decode_head.decoder.norm.weight': torch.zeros(1)}, 3)


def cubic_matrix(old: int, new: int) -> Tensor:
    """``(new, old)`` weights of cubic convolution, a = -3/4, between centres of cells.

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


@pytest.mark.parametrize(('old', 'new'), [(7, 12), (12, 7), (2, 3)])
def test_a_bias_of_positions_is_resized_by_the_bicubic_formula(old: int, new: int) -> None:
    """The table is random, because a smooth one comes out almost the same by any rule."""
    table = torch.randn((2 * old - 1) ** 2, 3)
    resized = resize_window(table, (2 * new - 1) ** 2)
    weights = cubic_matrix(2 * old - 1, 2 * new - 1)
    maps = table.double().reshape(2 * old - 1, 2 * old - 1, 3)
    expected = torch.einsum('yi,xj,ijh->yxh', weights, weights, maps).flatten(0, 1)
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-5)


def test_a_bias_of_the_same_window_stays() -> None:
    table = torch.randn(169, 3)
    assert torch.equal(resize_window(table, 169), table)
    with pytest.raises(ValueError, match=r'\(2 M - 1\)\^2 rows, not 100'):
        resize_window(table, 100)
