"""Base model, LoRA and log-probabilities, shared by trainer and sampler so that their numbers agree by construction."""
