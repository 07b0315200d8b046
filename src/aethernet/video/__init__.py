"""Upscale videos: decode, upscale, encode, join, and resume after an interruption."""
