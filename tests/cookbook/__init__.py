"""Programs of the cookbook of the official SDK, on a local model and local data."""
