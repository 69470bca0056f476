"""The few sizes of batch that are run, so that an engine can be prepared for each of them."""

from __future__ import annotations


def batch_sizes(least: int, most: int) -> tuple[int, ...]:
    """The least, the powers of two above it, and the most, which is seldom one."""
    powers = {1 << exponent for exponent in range(most.bit_length()) if least < 1 << exponent < most}
    return tuple(sorted(powers | {least, most}))
