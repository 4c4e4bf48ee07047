"""Number types by name, and whether this CPU computes in bfloat16."""

import functools

import torch

DTYPES = {
    'float16': torch.float16,
    'bfloat16': torch.bfloat16,
    'float32': torch.float32,
}


@functools.cache
def has_bfloat16() -> bool:
    """Return True if this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX).

    Without these instructions bfloat16 is slower than float32.
    """
    if hasattr(torch.cpu, 'get_capabilities'):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ('avx512_bf16', 'amx_bf16'))
    # Older versions of PyTorch.
    return bool(getattr(torch.cpu, '_is_avx512_bf16_supported', bool)())
