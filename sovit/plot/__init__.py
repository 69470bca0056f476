"""Plots as SVG and pages as HTML, written by hand: they need no library, no script and no network."""
