"""What clients can list: runs, checkpoints, sessions, keys, and what belongs to them."""
