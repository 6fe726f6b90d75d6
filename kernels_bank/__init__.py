"""Blur kernels: how they are drawn, stored and encoded. Knows nothing of images or of `pipeline/`."""
