"""Mixed precision, optimizer, resuming and the check before a run."""
