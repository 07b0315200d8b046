"""A page on this computer for upscaling pictures and videos, and its API."""
