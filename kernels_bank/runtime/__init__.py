"""The floor every job stands on: clear errors, URIs and atomic files, progress, the Ray connection.

It lives in the lowest package because the kernel bank must work without `pipeline/`.
"""
