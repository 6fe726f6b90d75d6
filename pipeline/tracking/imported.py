"""MLflow imported with settings that suit a job: it gives up soon, and it is quiet."""

from __future__ import annotations

import logging
import os

# Read by mlflow at import or at each request. Three retries give a dead server up after some 15 s, not 4 minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}


def import_mlflow() -> None:
    """Import it; what the environment sets already stays."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - it sets up its loggers, which are quietened after that

    for name in ("alembic", "mlflow.store.model_registry", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised too
