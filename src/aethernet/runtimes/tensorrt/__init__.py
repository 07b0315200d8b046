"""TensorRT: build an engine, describe it, run it."""
