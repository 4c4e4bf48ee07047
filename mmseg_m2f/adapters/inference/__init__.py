"""Prepare a built model for inference."""
