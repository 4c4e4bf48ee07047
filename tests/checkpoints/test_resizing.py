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


# The classes that are things, by their number in the official order.
ADE20K_THINGS = (
    '7 8 10 12 14 15 18 19 20 22 23 24 27 30 31 32 33 35 36 37 38 39 41 42 43 44 45 47 49 50 53 '
    '55 56 57 58 62 64 65 66 67 69 70 71 72 73 74 75 76 78 80 81 82 83 85 86 87 88 89 90 92 93 '
    '95 97 98 102 103 104 107 108 110 111 112 115 116 118 119 120 121 123 124 125 126 127 129 '
    '130 132 133 134 135 136 137 138 139 142 143 144 146 147 148 149'
)
MAPILLARY_THINGS = [0, 1, 8, 19, 20, 21, 22, 23, *range(32, 43), *range(44, 58), *range(59, 63)]
THINGS = {
    'ade20k': ([int(number) for number in ADE20K_THINGS.split()], 150, 100),
    'cityscapes': (list(range(11, 19)), 19, 8),
    'mapillary': (MAPILLARY_THINGS, 65, 37),
}


@pytest.mark.parametrize('name', THINGS)
def test_things_first_of_the_published_data_sets(name: str) -> None:
    things, num_classes, num_things = THINGS[name]
    assert len(things) == num_things
    stuff = [index for index in range(num_classes) if index not in things]
    metadata = load_metadata(name)
    order = things_first(metadata.thing_ids, len(metadata.classes))
    assert order == things + stuff
    rows = class_rows(reorder_classes(checkpoint(num_classes), order))
    assert rows == [*order, num_classes]


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


@pytest.mark.parametrize('name', ['query_feat', 'query_embed'])
def test_fewer_queries_are_the_first(name: str) -> None:
    state = checkpoint()
    key = f'decode_head.decoder.{name}.weight'
    assert torch.equal(resize_queries(state, 4)[key], state[key][:4])
    assert torch.equal(resize_queries(state, 6)[key], state[key])


def test_more_queries_are_noisy_copies() -> None:
    state = checkpoint(num_queries=100)
    changed = resize_queries(state, 250)
    for name in ('query_feat', 'query_embed'):
        old = state[f'decode_head.decoder.{name}.weight']
        new = changed[f'decode_head.decoder.{name}.weight']
        assert torch.equal(new[:100], old)
        noise = new[100:] - old[[*range(100), *range(50)]]
        assert noise.std().item() == pytest.approx(0.1 * old.std().item(), rel=0.1)
        # No two queries are alike, not even two copies of one.
        assert torch.cdist(new, new).add(torch.eye(250)).min() > 1e-3
    assert changed['backbone.conv1.weight'] is state['backbone.conv1.weight']


def test_noise_comes_from_the_global_generator() -> None:
    state = checkpoint()
    torch.manual_seed(3)
    first = resize_queries(state, 9)
    torch.manual_seed(3)
    again = resize_queries(state, 9)
    key = 'decode_head.decoder.query_feat.weight'
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], resize_queries(state, 9)[key])


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


def bias_table(side: int) -> Tensor:
    """Head 0 is constant, head 1 rises by the row, head 2 is the square of the column, in [-1, 1].

    The offsets' cells tile [-1, 1], so that tables of any window show the same function.
    """
    width = 2 * side - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    rows, columns = torch.meshgrid(x, x, indexing='ij')
    return torch.stack([torch.full_like(rows, 3), rows, columns**2], -1).flatten(0, 1)


@pytest.mark.parametrize(('old', 'new'), [(7, 12), (12, 7)])
def test_a_bias_of_positions_keeps_its_shape_in_another_window(old, new):
    resized, expected = resize_window(bias_table(old), (2 * new - 1) ** 2), bias_table(new)
    assert resized.shape == expected.shape
    torch.testing.assert_close(resized[:, 0], expected[:, 0])
    # Beyond the borders there is nothing to interpolate from.
    inner = (expected[:, 1].abs() < 0.7) & (bias_table(new)[:, 2] < 0.5)
    torch.testing.assert_close(resized[inner, 1], expected[inner, 1], rtol=0, atol=0.02)
    torch.testing.assert_close(resized[inner, 2], expected[inner, 2], rtol=0, atol=0.02)


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


def test_a_bias_of_the_same_window_stays():
    assert torch.equal(resize_window(bias_table(7), 169), bias_table(7))
    with pytest.raises(ValueError, match=r'\(2 M - 1\)\^2 rows, not 100'):
        resize_window(bias_table(7), 100)
