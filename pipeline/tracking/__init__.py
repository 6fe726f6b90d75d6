"""MLflow runs: metrics, pictures, lineage. Only this package, the registry and the registered model import mlflow."""
