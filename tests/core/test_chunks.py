import pytest
import torch

from mmseg_m2f.core import chunks
from mmseg_m2f.core.chunks import map_chunks, rows_per_chunk


def test_rows_fill_the_budget_and_are_at_least_one(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 1000)
    assert [rows_per_chunk(size) for size in (1, 300, 1000, 1001, 0)] == [1000, 3, 1, 1, 1000]


@pytest.mark.parametrize('sizes', [[0], [1], [3], [3, 3, 1]], ids=str)
def test_chunks_give_the_results_of_one_call_and_keep_only_their_rows(sizes, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 300)
    x = torch.randn(sum(sizes), 4, dtype=torch.float64, requires_grad=True)
    y = torch.rand(sum(sizes), 4, dtype=torch.float64)
    lengths, kept = [], {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def function(x, y):
        lengths.append(len(x))
        return (x.exp().sin() * y).sum(1)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        got = map_chunks(function, x, y, bytes_per_row=100)
    assert lengths == sizes
    if len(sizes) > 1:  # the backward pass forms the rest again
        assert set(kept) <= {part.untyped_storage().data_ptr() for part in (x, y)}
    expected = function(x, y)
    assert torch.equal(got, expected)
    grads = [torch.autograd.grad(result.square().sum(), x)[0] for result in (got, expected)]
    assert torch.equal(*grads)
