"""The services of a team: their settings agree wherever they stand, and the demo passes on all of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from services import __main__ as services

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    monkeypatch.setattr(services, "SETTINGS", tmp_path / ".env")
    services.write_settings()
    return dotenv_values(tmp_path / ".env")


def test_settings_are_secret_and_written_once(settings: dict[str, str | None]) -> None:
    assert services.SETTINGS.stat().st_mode & 0o077 == 0
    before = services.SETTINGS.read_text()
    services.write_settings()
    assert services.SETTINGS.read_text() == before
    passwords = [settings[name] for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_SECRET_ACCESS_KEY")]
    assert len(set(passwords)) == 3 and all(len(str(password)) == 32 for password in passwords)


def test_compose_takes_every_value_from_the_settings_and_answers_on_their_ports(
    settings: dict[str, str | None],
) -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{([A-Z0-9_]+)\}", text)) <= set(settings)
    document = yaml.safe_load(text)
    published = {int(port.split(":")[1]) for one in document["services"].values() for port in one.get("ports", ())}
    assert published == set(services.PORTS.values())
    assert all(port.startswith("127.0.0.1:") for one in document["services"].values() for port in one.get("ports", ()))


def test_dagster_reads_its_storage_from_the_settings(settings: dict[str, str | None]) -> None:
    text = (ROOT / "services" / "dagster.yaml").read_text()
    assert {"DIOPTRA_ASSETS_POSTGRES", "DIOPTRA_ASSETS_BUCKET"} <= set(re.findall(r"env: ([A-Z_]+)", text))
    assert set(re.findall(r"env: ([A-Z_]+)", text)) <= set(settings)


def test_a_machine_without_them_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"redis-server not found on this machine: apt-get install"):
        services._binaries()


def test_settings_that_somebody_else_wrote_are_not_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(services, "SETTINGS", tmp_path / ".env")
    monkeypatch.setattr(services, "FOLDER", tmp_path / ".services")
    services.SETTINGS.write_text("DIOPTRA_ASSETS_STORE=s3://elsewhere/store\n")
    with pytest.raises(SystemExit, match="is there already and holds other settings"):
        services._prepare(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the project with services of its own, on their usual ports."""
    if not (shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin"))):
        pytest.skip("there is no Postgres on this machine")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    # Not below a folder of pytest, which is closed to the user that Postgres runs as.
    copy = Path("/var/tmp") / f"dioptra_assets_{os.getpid()}"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    try:
        yield copy
    finally:
        run(copy, "-m", "services", "down")
        shutil.rmtree(copy, ignore_errors=True)


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("DIOPTRA_ASSETS_ENV",)}
    environment["PYTHONPATH"] = str(checkout)
    return subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_passes_on_postgres_s3_and_an_mlflow_server_and_survives_their_deaths(checkout: Path) -> None:
    up = run(checkout, "-m", "services", "up")
    assert up.returncode == 0, up.stdout + up.stderr
    demo = run(checkout, "-c", "from dioptra_assets.cli import main; main()", "demo")
    assert "0 were up to date" in demo.stdout, demo.stdout + demo.stderr
    for pattern in ("celery_app", "dagster-daemon", "weed server"):
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout
        for process in found.split():
            os.kill(int(process), signal.SIGKILL)
    up = run(checkout, "-m", "services", "up")  # waits until what was killed answers again
    assert up.returncode == 0, up.stdout + up.stderr
    again = run(checkout, "-c", "from dioptra_assets.cli import main; main()", "demo")
    assert "0 cells computed" in again.stdout, again.stdout + again.stderr
    matrix = [line for line in demo.stdout.splitlines() if "fgm" in line]
    assert matrix and matrix == [line for line in again.stdout.splitlines() if "fgm" in line]
    script = "import json, dioptra_assets as da; print(json.dumps(da.load('digits/transfer_matrix').shape))"
    loaded = run(checkout, "-c", script)
    assert json.loads(loaded.stdout.splitlines()[-1])[0] == 16, loaded.stderr
    assert not (checkout / "store").exists()
