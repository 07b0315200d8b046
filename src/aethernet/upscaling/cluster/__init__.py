"""Upscale a folder on a Ray cluster."""
