"""Operators: each has a contract, a readable reference and, where it pays, faster back ends."""

from mmseg_m2f.ops.assignment import linear_sum_assignment
from mmseg_m2f.ops.ms_deform_attn import ms_deform_attn

__all__ = ['linear_sum_assignment', 'ms_deform_attn']
