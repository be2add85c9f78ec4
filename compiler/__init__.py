"""From a quantized model to an image, and how fast it will be."""
