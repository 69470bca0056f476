"""The life of the process: loading, protocol, listening, stopping, and what a failed start leaves."""
