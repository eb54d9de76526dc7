"""What a person sees in a browser: the graph, a cell with its picture, the report."""

import io
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import dioptra_assets as da
from tests.conftest import Lab
from tests.servers import answer, dagster_ui

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PIPELINE = ["training_set", "model", "adversarial_set", "evasion_examples", "evasion_metrics", "report"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in the variable CHROMIUM"),
]


@pytest.fixture(scope="module")
def server(finished: Lab) -> Iterator[str]:
    """A Dagster web server on the finished experiment."""
    with dagster_ui(finished) as url:
        yield url


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1760, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        browser.close()


def test_the_graph_of_an_experiment_reads_from_left_to_right(server: str, page: Page, finished: Lab) -> None:
    page.goto(f"{server}/locations/{finished.module}.definitions/asset-groups/tiny/lineage")
    places = []
    for name in PIPELINE:
        node = page.get_by_text(name, exact=True).first
        expect(node).to_be_visible()
        box = node.bounding_box()
        assert box is not None
        places.append(box["x"])
    assert places == sorted(places) and len(set(places)) == len(places), dict(zip(PIPELINE, places, strict=True))


def test_a_cell_shows_its_pictures_and_numbers(server: str, page: Page) -> None:
    page.goto(f"{server}/assets/tiny/adversarial_set?view=partitions&partition=le_net%7Cfgm_0.3")
    expect(page.get_by_text("largest_change_of_a_pixel", exact=True).first).to_be_visible()
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator("img[src^='data:image/png;base64']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 100


def test_the_timeline_shows_what_was_computed_from_the_command_line(server: str, page: Page, finished: Lab) -> None:
    page.goto(f"{server}/overview/timeline")
    expect(page.get_by_text(f"{finished.module}.definitions", exact=True).first).to_be_visible()
    expect(page.get_by_text("Jobless asset materializations").first).to_be_visible()


@pytest.mark.parametrize("width", [1280, 420])
def test_the_report_fits_its_window_and_loads_nothing(looking: Lab, page: Page, tmp_path: Path, width: int) -> None:
    path = da.load("tiny/report").save(tmp_path / "report.html")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    broken = page.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    assert broken == 0 and page.evaluate("document.images.length") >= 5
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(
    ("seen", "plot_is_dark"),
    [
        ({"color_scheme": "light", "media": "screen"}, False),
        ({"color_scheme": "dark", "media": "screen"}, True),
        ({"color_scheme": "dark", "media": "print"}, False),
    ],
)
def test_plots_follow_the_colours_of_the_page_and_images_stay_as_they_are(
    looking: Lab, page: Page, tmp_path: Path, seen: dict[str, Any], plot_is_dark: bool
) -> None:
    path = da.load("tiny/report").save(tmp_path / "report.html")
    page.emulate_media(**seen)
    page.goto(path.as_uri())
    try:
        plot, images = (page.locator(f"{kind} img").first.screenshot() for kind in (".plot", "#pictures .paper"))
    finally:
        page.emulate_media(color_scheme="light", media="screen")
    drawn, shown = (np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in (plot, images))
    assert (drawn[1, 1] < 64) == plot_is_dark
    assert shown[1, 1] > 250
    assert np.ptp(drawn.astype(int)) > 120, "lines and letters are told from what is behind them"


LAUNCH = "mutation { reloadWorkspace { __typename } }"


def test_the_ui_does_nothing_for_pages_of_strangers(server: str) -> None:
    asked = json.dumps({"query": LAUNCH}).encode()
    as_json = {"Content_Type": "application/json"}
    assert answer(f"{server}/graphql", asked, **as_json)[0] == 200
    assert answer(f"{server}/graphql", asked, **as_json, Origin=server)[0] == 200
    refused = {
        "by GET": answer(f"{server}/graphql?query={urllib.parse.quote(LAUNCH)}"),
        "as text": answer(f"{server}/graphql", asked, Content_Type="text/plain"),
        "from another origin": answer(f"{server}/graphql", asked, **as_json, Origin="http://evil.example"),
        "from no origin": answer(f"{server}/graphql", asked, **as_json, Origin="null"),
        "another host": answer(f"{server}/graphql", asked, **as_json, Host="evil.example"),
        "a host that ends alike": answer(f"{server}/server_info", Host="127.0.0.1.evil.example"),
        "a notebook": answer(f"{server}/notebook?path=/etc/passwd"),
    }
    assert {name: status for name, (status, _) in refused.items()} == dict.fromkeys(refused, 403)
    assert all(text.startswith("refused: ") for _, text in refused.values())
    assert answer(f"{server}/")[0] == 200
