"""Upscale videos: decode, encode, join, continue after a kill."""
