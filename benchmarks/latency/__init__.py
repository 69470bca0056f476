"""What a model takes in its runtime, in process: measured in fresh processes, read back, and compared."""
