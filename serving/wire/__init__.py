"""Bytes in and bytes out: bodies taken apart, options read, replies and problems written."""
