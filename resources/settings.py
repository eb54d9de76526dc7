"""Where things are kept: one home folder, two settings to move its parts elsewhere.

| what | setting | default |
|---|---|---|
| home | `DAGSTER_HOME` | the checkout this package runs from, else the user's data folder |
| stored assets | `DIOPTRA_ASSETS_STORE`, a folder or `s3://bucket/prefix` | `HOME/store` |
| MLflow | `MLFLOW_TRACKING_URI` | `sqlite:///HOME/mlflow/mlflow.db` |
| MLflow's pages | `DIOPTRA_ASSETS_MLFLOW_UI` | `http://127.0.0.1:5000` |
| Dagster's pages | `DIOPTRA_ASSETS_SERVER` | `http://127.0.0.1:3000` |

A file `.env` in the checkout, or the one that `DIOPTRA_ASSETS_ENV` names, holds settings that the environment does not.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import platformdirs
from dotenv import load_dotenv


def project_root() -> Path | None:
    """The checkout this package runs from, or None when it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "dagster.yaml").exists() and (root / "pyproject.toml").exists() else None


def instance_settings() -> Path | None:
    """The `dagster.yaml` that a new home gets: the one of the checkout, or the one that a wheel holds."""
    if root := project_root():
        return root / "dagster.yaml"
    package = find_spec("dioptra_assets")
    held = Path(package.origin).parent / "dagster.yaml" if package and package.origin else None
    return held if held and held.exists() else None


def read_env_file() -> None:
    """Take settings from the file `.env`; what the environment says stays. Empty: no file.

    Called by whatever looks settings up, and not when a module is imported.
    """
    configured = os.environ.get("DIOPTRA_ASSETS_ENV")
    root = project_root()
    path = Path(configured) if configured else root / ".env" if root and configured is None else None
    if path and path.is_file():
        load_dotenv(path)


def home() -> Path:
    """The folder that holds everything unless a setting moves it."""
    read_env_file()
    if configured := os.environ.get("DAGSTER_HOME"):
        return Path(configured).expanduser().resolve()
    return project_root() or Path(platformdirs.user_data_dir("dioptra-assets"))


def store_url() -> str:
    """Where assets are stored: an absolute folder, or an `s3://` URL."""
    read_env_file()
    configured = os.environ.get("DIOPTRA_ASSETS_STORE")
    if configured and "://" in configured:
        return configured.rstrip("/")
    return str(Path(configured).expanduser().resolve() if configured else home() / "store")


def tracking_uri() -> str:
    """The MLflow tracking URI."""
    read_env_file()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def mlflow_ui() -> str:
    """Where MLflow's pages are looked at when its tracking URI is a database; `make mlflow` serves them there."""
    read_env_file()
    return os.environ.get("DIOPTRA_ASSETS_MLFLOW_UI", "http://127.0.0.1:5000")


def dagster_ui() -> str:
    """Where Dagster's pages are looked at; `make ui` serves them there."""
    return (os.environ.get("DIOPTRA_ASSETS_SERVER") or "http://127.0.0.1:3000").rstrip("/")


def artifact_location() -> str:
    """Where MLflow keeps artifacts when its tracking URI is a database; empty lets a server decide."""
    return "" if tracking_uri().startswith("http") else str(home() / "mlflow" / "artifacts")
