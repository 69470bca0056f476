"""What is told of requests: counts, traces, logs and the last minute, all from one record of each."""
