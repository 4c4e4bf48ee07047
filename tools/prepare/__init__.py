"""Conversions of downloaded data sets to the files that the configs read."""
