"""What a server process needs: gRPC server, health, metrics, logging, its announcement."""
