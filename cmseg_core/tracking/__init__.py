"""Training runs and the model registry: the one place that knows MLflow."""
