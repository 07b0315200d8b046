"""AetherNet on processors, by kernels of its own in C; needs NumPy only."""
