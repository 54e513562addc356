"""Logs, leases and results in Redis: what waits, who works on it, and what it ends with."""
