"""Operators: a contract, a readable reference and faster back ends for each."""

from mmseg_m2f.ops.assignment import linear_sum_assignment
from mmseg_m2f.ops.linear import linear
from mmseg_m2f.ops.ms_deform_attn import ms_deform_attn

__all__ = ['linear', 'linear_sum_assignment', 'ms_deform_attn']
