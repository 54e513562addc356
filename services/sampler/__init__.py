"""Samples: generates and scores from saved checkpoints on one base model."""
