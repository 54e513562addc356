"""Fixtures of the model tests."""

from tests.model.fixtures import load, source

__all__ = ["load", "source"]
