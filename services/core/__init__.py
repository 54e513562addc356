"""Torch-free parts that every service shares: settings, queue, operations, catalog, stores, errors, server."""
