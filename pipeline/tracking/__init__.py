"""MLflow: runs and the model registry. Only this package and the registered model's wrapper import mlflow."""
