"""The model registry: versions made of model folders, found by name and alias, promoted, compared and removed."""
