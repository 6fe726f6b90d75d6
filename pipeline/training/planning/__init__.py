"""Estimates of a training's cost without running it: operations, memory, hours and dollars."""
