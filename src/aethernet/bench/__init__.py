"""Speed and memory, beside other networks."""
