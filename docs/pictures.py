"""Take the pictures of the documentation: `make pictures`, after `make demo`.

Starts the guarded web server on the home folder, photographs what a person sees, and stops it again.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import dagster as dg
from playwright.sync_api import Page, sync_playwright

import dioptra_assets as da
from benchmarks.clusters import free_port
from resources import settings

IMAGES = Path(__file__).parent / "images"
PORT = free_port()
SERVER = f"http://127.0.0.1:{PORT}"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def main() -> None:
    """Write every picture to `docs/images`."""
    IMAGES.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "dioptra_assets.web.ui",
        "-h",
        "127.0.0.1",
        "-p",
        str(PORT),
        "-w",
        "workspace.yaml",
    ]
    server = subprocess.Popen(command, env=os.environ | {"DAGSTER_HOME": str(settings.home())})
    try:
        _wait_for(f"{SERVER}/server_info")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1760, "height": 1330}, device_scale_factor=1)
            _lineage(page)
            _adversarial_set(page)
            _gate(page)
            _model(page)
            _backfill(page)
            _report(page, "digits")
            if len(da.cells("inversion/report")):
                _report(page, "inversion")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _lineage(page: Page) -> None:
    page.goto(f"{SERVER}/locations/dioptra_assets/asset-groups/digits/lineage")
    page.get_by_text("evasion_metrics").first.wait_for(timeout=60_000)
    page.wait_for_timeout(4000)
    page.screenshot(path=IMAGES / "lineage.png")


def _adversarial_set(page: Page) -> None:
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.goto(f"{SERVER}/assets/digits/adversarial_set?view=partitions&partition=le_net%7Cfgm_0.3")
    page.get_by_text("[Show Markdown]").first.click(timeout=60_000)
    page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / "adversarial_set.png")


def _gate(page: Page) -> None:
    page.set_viewport_size({"width": 1760, "height": 950})
    page.goto(f"{SERVER}/assets/digits/evasion_gate?view=checks")
    page.get_by_text("Latest execution").wait_for(timeout=60_000)
    page.wait_for_timeout(2000)
    page.get_by_role("tab", name="Partitions").last.click()
    for key in ("shallow_net", "fgm_0.1"):  # the one that does not hold
        page.get_by_text(key, exact=True).locator("visible=true").last.click()
    page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / "gate.png")


def _model(page: Page) -> None:
    page.set_viewport_size({"width": 1500, "height": 1100})
    page.goto(f"{SERVER}/assets/digits/model?view=partitions&partition=le_net")
    page.get_by_text("mlflow_run").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / "model.png")


def _backfill(page: Page) -> None:
    """The last backfill, where there was one."""
    with dg.DagsterInstance.get() as instance:
        backfills = instance.get_backfills(limit=1)
    for backfill in backfills:
        page.set_viewport_size({"width": 1500, "height": 1000})
        page.goto(f"{SERVER}/runs/b/{backfill.backfill_id}")
        page.get_by_text("digits").first.wait_for(timeout=60_000)
        page.wait_for_timeout(3000)
        page.screenshot(path=IMAGES / "backfill.png")


def _report(page: Page, experiment: str) -> None:
    page.set_viewport_size({"width": 1180, "height": 1350})
    path = da.load(f"{experiment}/report").save(settings.home() / "reports" / f"{experiment}.html")
    page.goto(path.as_uri())
    if experiment == "inversion":
        page.get_by_role("heading", name="Model inversion").scroll_into_view_if_needed()
    page.screenshot(path=IMAGES / ("report.png" if experiment == "digits" else f"report_{experiment}.png"))


def _wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    raise TimeoutError(f"{url} did not answer within two minutes")


if __name__ == "__main__":
    main()
