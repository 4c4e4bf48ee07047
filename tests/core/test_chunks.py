import pytest
import torch

from mmseg_m2f.core import chunks
from mmseg_m2f.core.chunks import map_chunks, rows_per_chunk


def test_rows_fill_the_budget_and_are_at_least_one(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 1000)
    assert [rows_per_chunk(size) for size in (1, 300, 1000, 1001, 0)] == [1000, 3, 1, 1, 1000]


@pytest.mark.parametrize('num_rows', [0, 1, 3, 7])
def test_chunks_give_the_results_of_one_call(num_rows, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 300)
    x = torch.randn(num_rows, 4, dtype=torch.float64, requires_grad=True)
    y = torch.rand(num_rows, 4, dtype=torch.float64)
    lengths = []

    def function(x, y):
        lengths.append(len(x))
        return (x.exp() * y).sum(1)

    got, expected = map_chunks(function, x, y, bytes_per_row=100), (x.exp() * y).sum(1)
    assert lengths == {0: [0], 1: [1], 3: [3], 7: [3, 3, 1]}[num_rows]
    assert torch.equal(got, expected)
    assert torch.equal(
        *(torch.autograd.grad(result.square().sum(), x)[0] for result in (got, expected))
    )


def test_several_chunks_keep_only_their_rows_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 300)
    x, kept = torch.randn(9, 4, requires_grad=True), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        map_chunks(lambda x: x.exp().sin().sum(1), x, bytes_per_row=100)
    assert set(kept) <= {x.untyped_storage().data_ptr()}
