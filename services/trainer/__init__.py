"""Trains: carries out the logs of training runs on one base model."""
