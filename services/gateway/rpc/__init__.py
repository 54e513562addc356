"""The gRPC front: one servicer a file, authentication and admission."""
