"""What an image costs: measured latency joined with prices and published accuracies, as a report."""
