"""What a fitted law is asked for: the shape for a budget, and what it takes on a machine."""
