"""ONNX files: from a source with a graph to a file that plain ONNX Runtime runs."""
