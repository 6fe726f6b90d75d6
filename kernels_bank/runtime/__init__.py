"""The foundation of every job: clear errors, URIs and atomic files, progress, the Ray connection.

It is in the lowest package because the kernel bank must work without `pipeline/`.
"""
