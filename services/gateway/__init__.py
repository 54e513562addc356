"""The stateless front: authenticates, validates, queues, and streams results back. Never imports torch."""
