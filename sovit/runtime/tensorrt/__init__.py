"""TensorRT: compile a plan on the machine that will run it, keep it, run it."""
