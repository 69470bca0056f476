"""The HTTP service. Imports `sovit`, never torch."""
