"""Have deformops compile its kernels for this GPU, once, so that no timing waits for it.

    DEFORMOPS_COMPILE=1 python -m tools.benchmark.gpu_deformops

Where they cannot be compiled it runs its Triton kernels instead, and warns.
"""

import sys
import warnings

import torch

from tools.benchmark import gpu_ops, ops


def main() -> None:
    """Call it once in each type."""
    warnings.simplefilter('always')
    for name, dtype in gpu_ops.DTYPES.items():
        problem = gpu_ops.draw('64x64b1', dtype, torch.device('cuda'))
        objection = ops.why_not('deformops', problem)
        if objection is not None:
            sys.exit(objection)
        ops.run(ops.operator('deformops'), problem)
        torch.cuda.synchronize()
        print(f'deformops runs in {name}', flush=True)


if __name__ == '__main__':
    main()
