"""Operators: a contract, and beside PyTorch's or a readable reference what is faster."""

from mmseg_m2f.ops.assignment import linear_sum_assignment
from mmseg_m2f.ops.ms_deform_attn import ms_deform_attn

__all__ = ['linear_sum_assignment', 'ms_deform_attn']
