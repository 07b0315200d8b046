"""Upscale the pictures of a folder on the machines of a Ray cluster."""
