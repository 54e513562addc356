"""Fixtures of the parity tests."""

from tests.model.fixtures import load, source

__all__ = ["load", "source"]
