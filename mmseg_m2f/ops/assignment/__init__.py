"""Minimum-cost bipartite assignment: the contract."""

from mmseg_m2f.ops.assignment.reference import linear_sum_assignment

__all__ = ['linear_sum_assignment']
