"""Runtimes: engines that run one model on one lane, behind one protocol."""
