"""Hours of mixed load, after which nothing is left that nobody needs."""
