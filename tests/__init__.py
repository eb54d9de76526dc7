"""No test reads the settings of the checkout it runs in: they may lead to a team's real services."""

import os

os.environ["DIOPTRA_ASSETS_ENV"] = ""
for name in list(os.environ):
    settings = name.startswith("DIOPTRA_ASSETS_") and name not in ("DIOPTRA_ASSETS_DATA", "DIOPTRA_ASSETS_ENV")
    if settings or name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        del os.environ[name]
