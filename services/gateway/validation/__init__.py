"""Structural validation of requests: torch-free, cheap, and it names the field and what is allowed."""
