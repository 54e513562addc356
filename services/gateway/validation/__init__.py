"""Structural validation of requests: torch-free, cheap, and it names the field, the rule and the value."""
