"""From data to a checkpoint."""
