"""Compile the Triton kernels for GPUs that need not be here; print registers and spills.

    .venv/bin/python tests/ops/triton_compile_check.py

Exit status 1 when a kernel spills registers to memory.
"""

import itertools
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmseg_m2f.ops.ms_deform_attn import triton_kernels, triton_launch

CAPABILITIES = 80, 90
TYPES = {'fp32': 4, 'bf16': 2, 'fp16': 2}
HEADS, HEAD_DIM, LEVELS, POINTS = 8, 32, 3, 4
COLUMNS = 'kernel', 'type', 'target', 'registers', 'spilled', 'shared'


class Usage(NamedTuple):
    """Registers of a thread, its bytes spilled, shared memory of a program in bytes."""

    kernel: str
    type: str
    target: str
    registers: int
    spilled: int
    shared: int


def compiled(kernel, dtype, capability, **options):
    """Pointers and strides aligned to 16, as those of a model are."""
    is_forward = kernel is triton_kernels.forward_kernel
    constants = {
        'num_heads': HEADS,
        'head_dim': HEAD_DIM,
        'num_levels': LEVELS,
        'num_points': POINTS,
        **triton_launch.block_shape(
            HEAD_DIM, LEVELS, POINTS, 16 // TYPES[dtype] if is_forward else 4
        ),
    }
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = 'constexpr'
        elif name == 'extents':
            signature[name] = ('fp32',) * (2 * LEVELS)
        elif name in triton_kernels.UNSPECIALIZED:
            signature[name] = 'i32'
        else:
            exact = '*fp32' if name in ('grad_value', 'reference_points') else f'*{dtype}'
            signature[name] = 'i32' if name.endswith('_stride') else exact
            aligned[(index,)] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget('cuda', capability, 32)
    options = {**triton_launch.OPTIONS, **options}
    return triton.compile(source, target=target, options=options)


def usage(kernel, dtype, capability, **options):
    binary = compiled(kernel, dtype, capability, **options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', file.name]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', log).groups()
    # The kernels keep nothing on the stack but what does not fit into registers.
    name, target = kernel.fn.__name__.removesuffix('_kernel'), f'sm_{capability}'
    return Usage(name, dtype, target, int(registers), int(stack), binary.metadata.shared)


def usages():
    kernels = triton_kernels.forward_kernel, triton_kernels.backward_kernel
    return [usage(*case) for case in itertools.product(kernels, TYPES, CAPABILITIES)]


def table(rows):
    return '\n'.join(''.join(f'{cell!s:>11}' for cell in row) for row in (COLUMNS, *rows))


if __name__ == '__main__':
    found = usages()
    sys.stdout.write(f'Triton {triton.__version__}\n{table(found)}\n')
    sys.exit(any(row.spilled for row in found))
