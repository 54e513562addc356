"""Server processes: gRPC server, health, metrics, logging, and the announcement of workers."""
