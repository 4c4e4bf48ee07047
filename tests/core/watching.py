"""Watch what PyTorch does while a function runs."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result, or its size, the host has to wait for.
WAITING = {
    'aten::_local_scalar_dense',
    'aten::_unique2',
    'aten::bincount',
    'aten::equal',
    'aten::is_nonzero',
    'aten::masked_select',
    'aten::nonzero',
    'aten::repeat_interleave',
    'aten::unique_consecutive',
    'aten::unique_dim',
}


class Watch(TorchDispatchMode):
    """Counts the waits for the device, and keeps the size of the largest tensor of floats."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name.startswith('aten::index') and any(
            getattr(index, 'dtype', None) == torch.bool for index in tree_leaves(args[1:2])
        )
        if name in WAITING or by_mask:
            self.waits.append(name)
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                self.largest = max(self.largest, part.numel())
        return result


def gradients_and_saved_bytes(function, leaves):
    """Gradients of the scalar ``function()``, and what the forward pass kept for them.

    Parameters count too; what two operators keep counts twice.
    """
    saved = 0

    def pack(tensor):
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = function()
    kept = saved  # computing again in the backward pass keeps for a moment
    return torch.autograd.grad(loss, leaves, allow_unused=True), kept
