"""What only makes CPUs faster: an option, and a room that can be deleted."""
