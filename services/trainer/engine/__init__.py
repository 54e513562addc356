"""Training runs on one device. Torch, called from one thread; never awaits."""
