"""Runs ONNX classifiers over media: packs that operators bring, proven at load, one decode for all of them."""
