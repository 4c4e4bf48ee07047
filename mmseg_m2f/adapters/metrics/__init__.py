"""Metrics for the MMEngine evaluator."""
