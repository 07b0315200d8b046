"""The blocks of the network in Triton, for NVIDIA GPUs: inference and training."""
