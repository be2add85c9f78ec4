"""Compiler, image, devices and the token loop: what runs beside the accelerator."""
