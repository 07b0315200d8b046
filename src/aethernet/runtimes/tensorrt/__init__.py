"""TensorRT engines: build one from an ONNX file, describe it, run it."""
