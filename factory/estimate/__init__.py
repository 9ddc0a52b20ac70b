"""What a run will need, from the architecture alone."""
