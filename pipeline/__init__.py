"""The data-and-training pipeline for blind image super-resolution."""
