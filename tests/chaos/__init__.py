"""Everything is killed, at random moments, and nothing is lost."""
