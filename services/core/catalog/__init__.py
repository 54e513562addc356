"""Catalog: what clients can list (runs, checkpoints, sessions, API keys), with pins, garbage and verification."""
