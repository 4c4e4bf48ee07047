"""The errors that reading and loading checkpoints raise."""


class CheckpointError(ValueError):
    """Raised when a file cannot be used as a checkpoint, or not for this model."""


class UnsafeCheckpointError(CheckpointError):
    """Raised when a file asks for more than tensors and plain values; none of it was run."""
