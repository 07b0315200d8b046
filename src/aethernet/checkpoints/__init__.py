"""Checkpoints: read, describe, fuse, export and verify them."""
