"""The `tinker-platform` command."""
