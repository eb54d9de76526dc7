import importlib.util
from pathlib import Path

import pytest

from resources import settings
from resources.instance import home_instance

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAGSTER_HOME", "DIOPTRA_ASSETS_STORE", "DIOPTRA_ASSETS_MLFLOW_UI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_without_settings_everything_is_in_the_checkout():
    root = Path(__file__).parents[2]
    assert settings.home() == root
    assert settings.store_url() == str(root / "store")
    assert settings.tracking_uri() == f"sqlite:///{root}/mlflow/mlflow.db"
    assert settings.artifact_location() == f"{root}/mlflow/artifacts"


def test_without_a_checkout_everything_is_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(settings, "project_root", lambda: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.home().is_relative_to(tmp_path)
    assert settings.home().name == "dioptra-assets"


def test_dagster_home_moves_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "my home ü"))
    assert settings.store_url() == str(tmp_path / "my home ü" / "store")
    assert settings.tracking_uri() == f"sqlite:///{tmp_path}/my home ü/mlflow/mlflow.db"


def test_a_relative_or_tilde_folder_becomes_absolute_so_that_every_process_means_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    monkeypatch.setenv("DAGSTER_HOME", "here")
    monkeypatch.setenv("DIOPTRA_ASSETS_STORE", "~/sets")
    assert settings.home() == tmp_path / "here"
    assert settings.store_url() == str(tmp_path / "jane" / "sets")


def test_the_store_may_be_on_s3(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIOPTRA_ASSETS_STORE", "s3://bucket/some/prefix/")
    assert settings.store_url() == "s3://bucket/some/prefix"


def test_a_tracking_server_keeps_artifacts_where_it_wants(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert settings.tracking_uri() == "http://mlflow:5000"
    assert settings.artifact_location() == ""


def test_a_new_home_of_an_installed_wheel_gets_the_settings_that_the_wheel_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "dioptra_assets").mkdir()
    (tmp_path / "dioptra_assets" / "__init__.py").touch()
    monkeypatch.setattr(settings, "project_root", lambda: None)
    spec = importlib.util.spec_from_file_location("dioptra_assets", tmp_path / "dioptra_assets" / "__init__.py")
    monkeypatch.setattr(settings, "find_spec", lambda name: spec)
    assert settings.instance_settings() is None, "an editable installation without its checkout"
    (tmp_path / "dioptra_assets" / "dagster.yaml").write_text("telemetry: {enabled: false}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with home_instance():
        assert (tmp_path / "home" / "dagster.yaml").read_text() == "telemetry: {enabled: false}"
