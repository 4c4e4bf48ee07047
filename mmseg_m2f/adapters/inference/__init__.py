"""Prepare a built model for inference."""

from mmseg_m2f.adapters.inference.prepare import CannotPrepareError, PrepareInferenceHook

__all__ = ['CannotPrepareError', 'PrepareInferenceHook']
