"""Speed, memory and arithmetic of our networks and their peers, side by side."""
