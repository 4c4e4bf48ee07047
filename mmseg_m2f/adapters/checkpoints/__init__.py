"""Read checkpoints of any known implementation, convert them and write our own."""
