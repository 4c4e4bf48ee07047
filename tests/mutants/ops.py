"""Mutants of the operators."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name='reference_samples_with_aligned_corners',
        breaks='Deformable attention samples with align_corners=False.',
        file='mmseg_m2f/ops/ms_deform_attn/reference.py',
        old='points, align_corners=False',
        new='points, align_corners=True',
        tests=('tests/ops/test_ms_deform_attn.py',),
    ),
    Mutant(
        name='offsets_are_divided_by_height_and_width',
        breaks='Offsets are (x, y), so they are divided by (width, height).',
        file='mmseg_m2f/ops/ms_deform_attn/reference.py',
        old='sizes = [(width, height) for height, width in level_shapes]',
        new='sizes = [(height, width) for height, width in level_shapes]',
        tests=('tests/ops/test_ms_deform_attn.py',),
    ),
    Mutant(
        name='compiled_kernel_reads_one_column_too_far',
        breaks='The compiled kernel takes pixels beyond the right border as zero.',
        file='mmseg_m2f/ops/ms_deform_attn/compiled.cpp',
        old='const int32_t in_right = (column >= -1) & (column < width - 1);',
        new='const int32_t in_right = (column >= -1) & (column < width);',
        tests=('tests/ops/test_ms_deform_attn.py',),
    ),
    Mutant(
        name='compiled_logits_keep_the_mean_of_their_gradients',
        breaks='The gradient of the softmax subtracts the weighted mean.',
        file='mmseg_m2f/ops/ms_deform_attn/compiled.cpp',
        old='samples.weight[i] * (weight_[i] - mean)',
        new='samples.weight[i] * weight_[i]',
        tests=('tests/ops/test_ms_deform_attn.py',),
    ),
    Mutant(
        name='triton_kernel_swaps_the_shares_of_its_pixels',
        breaks='The Triton kernel weighs the upper right pixel by x, the lower left one by y.',
        file='mmseg_m2f/ops/ms_deform_attn/triton_kernels.py',
        old='return top * (1 - x), top * x, bottom * (1 - x), bottom * x',
        new='return top * (1 - x), bottom * (1 - x), top * x, bottom * x',
        tests=('tests/ops/test_ms_deform_attn_triton.py',),
    ),
    Mutant(
        name='a_named_back_end_runs_against_its_objection',
        breaks='A back end asked for by name that cannot run is refused with its objection.',
        file='mmseg_m2f/ops/backends.py',
        old='if objection is not None:\n            raise',
        new='if objection is not None and not backend.automatic:\n            raise',
        tests=('tests/ops/test_backends.py',),
    ),
    Mutant(
        name='auto_takes_back_ends_that_must_be_named',
        breaks='The automatic choice leaves out back ends that are not automatic.',
        file='mmseg_m2f/ops/backends.py',
        old='if not backend.automatic:',
        new='if backend.automatic is None:',
        tests=('tests/ops/test_backends.py',),
    ),
    Mutant(
        name='a_cache_that_others_may_write_to_is_trusted',
        breaks='Compiled code is never loaded from a folder that others may write to.',
        file='mmseg_m2f/ops/native.py',
        old='status.st_mode & 0o022',
        new='status.st_mode & 0o000',
        tests=('tests/ops/test_native.py',),
    ),
    Mutant(
        name='assignment_maximizes',
        breaks='The assignment is the cheapest one.',
        file='mmseg_m2f/ops/assignment/reference.py',
        old='optimize.linear_sum_assignment(cost)',
        new='optimize.linear_sum_assignment(cost, maximize=True)',
        tests=('tests/ops/test_assignment.py',),
    ),
)
