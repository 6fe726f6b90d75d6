"""Restoration of photographs over HTTP: a Ray Serve deployment around one Restorer, and its page."""
