"""Compare the speed and memory of AetherNet with those of other networks."""
