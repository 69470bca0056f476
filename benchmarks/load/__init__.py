"""What a running service takes over HTTP: open and closed loop, and the highest rate that meets an SLO."""
