"""Fitted detectors as ONNX and OpenVINO files, and how to run these without torch."""
