"""The services: gateway, trainer and sampler, over a shared core."""
