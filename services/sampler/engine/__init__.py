"""Generation and scoring on one device. Torch, called from one thread; never awaits."""
