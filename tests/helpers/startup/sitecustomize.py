"""Python runs this at the start of every process that a test starts.

An eighth of the CPU of importing Ray, torch and MLflow (3.6 s against 3.15 s) goes into searching what they define for
garbage, of which there is hardly any yet. With these thresholds the search begins later. A job of a test is some twelve
processes that import them.
"""

import gc

gc.set_threshold(200_000, 10, 10)
