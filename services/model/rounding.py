"""Rounding of whole numbers upwards."""

from __future__ import annotations


def ceil_div(number: int, divisor: int) -> int:
    """The quotient of two positive numbers, rounded up."""
    return (number + divisor - 1) // divisor


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `number`; both are positive."""
    return ceil_div(number, step) * step


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()
