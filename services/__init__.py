"""Real services on this machine: Postgres, S3, Redis, MLflow, and the platform's own processes on top of them."""
