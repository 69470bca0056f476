"""From a checkpoint to an artifact."""
