"""ONNX: exporting a checkpoint, and reading, cutting and running graphs."""
