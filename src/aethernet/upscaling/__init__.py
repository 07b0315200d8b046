"""Upscale pictures and folders, here, in the browser or on a cluster."""
