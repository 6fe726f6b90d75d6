"""Photographs to shards to degraded training samples: the Ray Data graphs."""
