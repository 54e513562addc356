"""Fixtures of the sampler tests."""

from tests.model.fixtures import load, source
from tests.sampler.fixtures import checkpoint

__all__ = ["checkpoint", "load", "source"]
