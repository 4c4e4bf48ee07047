"""Compile the Triton kernels for GPUs that need not be here; print registers and spills.

python -m tests.ops.triton_compile_check
"""

import itertools
import re
import subprocess
import tempfile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmseg_m2f.ops.ms_deform_attn import triton_kernels, triton_launch

CAPABILITIES = 80, 90
BYTES = {'fp32': 4, 'bf16': 2, 'fp16': 2}
SIZES = {'num_heads': 8, 'head_dim': 32, 'num_levels': 3, 'num_points': 4}


class Usage(NamedTuple):
    """Registers of a thread, its bytes spilled, shared memory of a program in bytes."""

    kernel: str
    type: str
    capability: int
    registers: int
    spilled: int
    shared: int


def usage(kernel, dtype, capability, **options):
    """Compile for pointers and strides aligned to 16, as those of a model are."""
    vector = 16 // BYTES[dtype] if kernel is triton_kernels.forward_kernel else 4
    _, head_dim, num_levels, num_points = SIZES.values()
    constants = SIZES | triton_launch.block_shape(head_dim, num_levels, num_points, vector)
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = 'constexpr'
        elif name == 'extents':
            signature[name] = ('fp32',) * (2 * num_levels)
        elif name in triton_kernels.UNSPECIALIZED:
            signature[name] = 'i32'
        else:
            exact = '*fp32' if name in ('grad_value', 'reference_points') else f'*{dtype}'
            signature[name] = 'i32' if name.endswith('_stride') else exact
            aligned[(index,)] = [['tt.divisibility', 16]]
    binary = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget('cuda', capability, 32),
        options={**triton_launch.OPTIONS, **options},
    )
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', file.name]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The kernels keep nothing on the stack but what does not fit into registers.
    registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', log).groups())
    name = kernel.fn.__name__
    return Usage(name, dtype, capability, registers, stack, binary.metadata.shared)


def usages():
    kernels = triton_kernels.forward_kernel, triton_kernels.backward_kernel
    return [usage(*case) for case in itertools.product(kernels, BYTES, CAPABILITIES)]
