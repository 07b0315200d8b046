"""Upscale pictures and folders, here or on a cluster."""
