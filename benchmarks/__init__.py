"""Measurements: each number with its conditions."""
