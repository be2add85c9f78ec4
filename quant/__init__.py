"""Checkpoints, calibration, quantization and evaluation."""
