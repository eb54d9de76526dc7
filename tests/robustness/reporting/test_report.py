import dataclasses
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dioptra_assets.robustness.evaluation.worst_case import WORST_CASE_COLUMNS
from dioptra_assets.robustness.reporting.report import ReportData, lowest, rate, render_report

pytestmark = pytest.mark.quick

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br"}
BLOCKS = {"td", "th", "dt", "dd", "li", "caption"}


class Page(HTMLParser):
    """The elements, attributes and text of a page; balance of the tags is checked on the way."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in BLOCKS:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for t, attributes in self.elements if t == tag and name in attributes]


def png(grey: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (40, 20), grey).save(buffer, format="PNG")
    return buffer.getvalue()


def metrics(models: list[str], attacks: list[str]) -> pd.DataFrame:
    rows = []
    for source in models:
        for attack in attacks:
            for target in models:
                number = len(rows)
                row = {"source": source, "attack": attack, "target": target, "defence": "none", "n": 10000, "seed": 99}
                for name, value in {
                    "clean_accuracy": 0.99,
                    "robust_accuracy": 0.5 - 0.01 * number,
                    "auc": 0.75,
                }.items():
                    row |= {name: value, f"{name}_low": value - 0.004, f"{name}_high": value + 0.004}
                digits = {f"{d}_{s}": 1.5 for d in ("l2", "linf") for s in ("mean", "median", "max")}
                rows.append(row | digits)
    return pd.DataFrame(rows)


def headline() -> pd.DataFrame:
    base = {"target": "le_net", "threat": "Linf <= 0.3", "n": 10000}
    base |= {"clean_accuracy": 0.99, "clean_accuracy_low": 0.98, "clean_accuracy_high": 0.995}
    made = {"attacks": "fgm_0.3 (made on le_net, shallow_net)", "one_step": True}
    rates = {"robust_accuracy": 0.123, "robust_accuracy_low": 0.117, "robust_accuracy_high": 0.13}
    behind = {"robust_accuracy": 0.8, "robust_accuracy_low": 0.79, "robust_accuracy_high": 0.81, "one_step": False}
    plain = base | made | rates
    return pd.DataFrame([plain | {"defence": "none"}, plain | {"defence": "jpeg"} | behind])[[*WORST_CASE_COLUMNS]]


def report_data(**changes: object) -> ReportData:
    models, attacks = ["le_net", "shallow_net"], ["fgm_0.1", "fgm_0.3"]
    table = metrics(models, attacks)
    matrices = {
        attack: table[table["attack"] == attack].pivot(index="source", columns="target", values="robust_accuracy")
        for attack in attacks
    }
    data = ReportData(
        experiment="digits",
        description="Two networks on digits.",
        data=pd.DataFrame(
            [{"set": "testing_set", "n": 10000, "classes": 10, "size": "28 x 28", "data_version": "ab" * 32}]
        ),
        models=pd.DataFrame(
            [
                {"architecture": name, "parameters": 61706, "epochs": 3.0, "clean_accuracy": 0.99, "low": 0.98}
                | {"high": 0.995, "data_version": "cd" * 32}
                for name in models
            ]
        ),
        attacks=[
            {
                "attack": attack,
                "method": "fgm",
                "description": "One step.",
                "parameters": {"eps": float(attack[4:]), "minimal": False},
                "threat_model": {"nist_class": "evasion", "knowledge": "white-box", "goal": "untargeted", "norm": "inf"}
                | {"budget": f"Linf {attack[4:]}"},
            }
            for attack in attacks
        ],
        metrics=table,
        headline=headline(),
        transfer_matrices=matrices,
        figures={"transfer_matrix/fgm_0.3": png(), "security_curves": png(), "loss_curves/le_net": png()},
        grids=[("fgm_0.3 made on le_net", png(90))],
        provenance=pd.DataFrame(
            [
                {
                    "asset": "model",
                    "partition": "le_net",
                    "data_version": "ef" * 32,
                    "seed": 7,
                    "device": "CPU",
                }
            ]
        ),
        versions={"keras": "3.15.0"},
        missing=[],
        commands=["make setup", 'dg launch --assets "group:digits"'],
    )
    return dataclasses.replace(data, **changes)  # pyright: ignore[reportArgumentType]


def test_text_from_data_is_never_markup():
    evil = metrics([EVIL, "le_net"], [EVIL])
    html = render_report(
        report_data(
            experiment=EVIL,
            description=EVIL,
            data=pd.DataFrame([{"set": EVIL, "n": 1, "classes": 2, "size": EVIL, "data_version": EVIL}]),
            models=pd.DataFrame([{"architecture": EVIL, "clean_accuracy": 0.5, "low": 0.4, "high": 0.6, EVIL: 3}]),
            attacks=[
                {"attack": EVIL, "method": EVIL, "description": EVIL, "parameters": {EVIL: EVIL, "b": EVIL}},
                {"attack": EVIL, "method": EVIL, "threat_model": dict.fromkeys(["goal", "norm", "budget"], EVIL)},
            ],
            metrics=evil.assign(defence=EVIL),
            transfer_matrices={EVIL: pd.DataFrame([[0.5]], index=[EVIL], columns=[EVIL])},
            figures={
                EVIL: png(),
                f"transfer_matrix/{EVIL}": png(),
                f"loss_curves/{EVIL}": png(),
                "security_curves": png(),
            },
            grids=[(EVIL, png())],
            provenance=pd.DataFrame([{"asset": EVIL, "partition": EVIL, "data_version": EVIL, "device": EVIL}]),
            versions={EVIL: EVIL},
            missing=[EVIL],
            commands=[EVIL],
        )
    )
    page = Page(html)
    assert "<script" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "form", "base"})
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("img", "src"))
    # It is still there to read, letter by letter, and was not taken for a template.
    assert page.text.count(EVIL) > 15
    assert "49" not in page.attributes("img", "alt")[0]


def test_the_page_asks_nothing_of_any_server():
    html = render_report(report_data(missing=["model le_net"]))
    page = Page(html)
    linked = page.attributes("a", "href") + page.attributes("link", "href") + page.attributes("img", "src")
    assert linked
    assert all(address.startswith(("#", "data:")) for address in linked)
    assert not re.search(r"https?:|url\(|@import|src=\"//", html)
    policy = page.attributes("meta", "content")
    assert any("default-src 'none'" in content for content in policy)


def test_every_entry_of_the_contents_leads_somewhere():
    page = Page(render_report(report_data(missing=["model le_net"])))
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    targets = {address.removeprefix("#") for address in page.attributes("a", "href")}
    assert "missing" in targets
    assert targets <= anchors
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_every_row_of_the_metric_table_is_on_the_page():
    data = report_data()
    html = render_report(data)
    body = html[html.index('<section id="metrics">') :]
    rows = [" ".join(Page(row).words) for row in re.findall(r"<tr>.*?</tr>", body)]
    for _, row in data.metrics.iterrows():
        words = [row["source"], row["attack"], row["target"], f"{100 * row['robust_accuracy']:.1f} %"]
        assert sum(all(word in text for word in words) for text in rows) == 1


def test_the_same_data_give_the_same_page():
    assert render_report(report_data()) == render_report(report_data())


def test_the_headline_is_the_worst_case_of_each_threat_model_with_interval_n_and_attacks():
    page = Page(render_report(report_data()))
    headline = page.text[page.text.index("What is left of each model") : page.text.index("How to read")]
    under = "under fgm_0.3 (made on le_net, shallow_net), n = 10,000; rests on one-step attacks alone"
    assert f"le_net, Linf <= 0.3 12.3 % [11.7, 13.0] {under}" in headline
    assert "le_net with jpeg, Linf <= 0.3 80.0 %" in headline
    assert headline.count("rests on one-step") == 1
    assert "No row of the metric table exists yet" in Page(render_report(report_data(headline=pd.DataFrame()))).text


def test_the_attack_success_rate_is_explained_for_targeted_attacks_too():
    said = Page(render_report(report_data())).text
    assert "Of a targeted one: share of the images of other classes that are classified as the target class" in said


def test_missing_cells_are_said_first():
    missing = ["evasion_metrics le_net|fgm_0.2", "model alex_net"]
    page = Page(render_report(report_data(missing=missing)))
    assert "2 cells are missing" in page.text
    assert page.text.index("2 cells are missing") < page.text.index("What is left of each model")
    assert all(cell in page.text for cell in missing)
    complete = Page(render_report(report_data()))
    assert "no cell is missing" in complete.text
    assert "missing" not in [attributes.get("id") for _, attributes in complete.elements]


def test_a_missing_cell_of_a_transfer_matrix_is_not_a_number():
    matrix = pd.DataFrame([[0.5, math.nan]], index=["le_net"], columns=["le_net", "shallow_net"])
    page = Page(render_report(report_data(transfer_matrices={"fgm_0.1": matrix})))
    table = page.text[page.text.index("Robust accuracy under fgm_0.1") :]
    assert re.match(r"[^%]*le_net 50.0 % \[49.6, 50.4\]\s*missing", table)


def test_alternative_texts_say_what_the_picture_shows():
    alts = Page(render_report(report_data())).attributes("img", "alt")
    assert len(alts) == 4
    assert any(
        "fgm_0.3" in alt and "lowest 43.0 %, made on shallow_net, evaluated on shallow_net" in alt for alt in alts
    )
    assert any("le_net falls from 99.0 % clean to 12.3 % within Linf <= 0.3" in alt for alt in alts)
    assert any("clean accuracy at the end 99.0 %" in alt for alt in alts)
    assert any("difference" in alt for alt in alts)


def test_a_sweep_shows_what_it_varies_and_says_the_rest_once():
    page = Page(render_report(report_data()))
    threat = page.text[page.text.index("One step.") : page.text.index("Image sets")]
    assert threat.count("minimal=false") == 1
    assert "fgm_0.1 Linf 0.1 0.1" in threat
    assert "fgm_0.3 Linf 0.3 0.3" in threat


def test_distances_that_depend_on_the_target_keep_it():
    data = report_data()
    once = render_report(data)
    differing = data.metrics.assign(l2_mean=np.arange(len(data.metrics), dtype=float))
    each = render_report(report_data(metrics=differing))
    assert each.count(">L2<") == 2 * once.count(">L2<") == len(data.metrics)


def test_an_experiment_without_a_result_still_has_a_page():
    empty = ReportData("digits", "", pd.DataFrame(), pd.DataFrame(), [], pd.DataFrame(), missing=["everything"])
    text = Page(render_report(empty)).text
    assert "1 cell is missing" in text
    assert "No row of the metric table exists yet" in text


def test_a_picture_that_is_no_png_is_refused_by_name():
    with pytest.raises(ValueError, match="Security curves"):
        render_report(report_data(figures={"security_curves": b"GIF89a"}))


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.123, 0.117, 0.130), ("12.3 %", "[11.7, 13.0]")),
        ((0.0, 0.0, 0.0004), ("0.0 %", "[0.0, 0.0]")),
        ((1.0, math.nan, math.nan), ("100.0 %", "")),
        ((math.nan, 0.1, 0.2), ("–", "")),
    ],
)
def test_a_rate_is_a_percentage_and_its_interval(ends, text):
    assert rate(*ends) == text


def test_the_page_links_to_the_files_beside_it_and_shows_how_to_make_it_again():
    declaration = {"type": "dioptra_assets.experiment.Experiment", "attributes": {"seed": 7, "description": EVIL}}
    page = Page(
        render_report(
            report_data(seed=7, declaration=declaration, files=[("digits.report.json", "JSON"), (EVIL, EVIL)])
        )
    )
    assert [a for a in page.attributes("a", "href") if not a.startswith("#")] == ["digits.report.json", EVIL]
    assert "seed 7" in page.text and 'dg launch --assets "group:digits"' in page.text
    assert "type: dioptra_assets.experiment.Experiment attributes: seed: 7" in page.text


def test_a_page_of_many_rows_shows_the_worst_and_says_where_all_are():
    names = [f"net_{number}" for number in range(30)]
    table = metrics(names, ["fgm_0.1", "pgd"])
    table["robust_accuracy"] = np.linspace(0, 1, len(table))
    table["robust_accuracy"] = table["robust_accuracy"].mask(table.index == 3)
    gone = [f"gone/{number}" for number in range(600)]
    files = [("x.report.json", "JSON"), ("digits.metrics.parquet", "metric table")]
    data = report_data(experiment="digits", metrics=table, missing=gone, files=files)
    page = Page(render_report(data))
    assert f"The 500 of {len(table):,} rows with the lowest robust accuracy. All are in metric table" in page.text
    assert "and 100 more. All are in JSON" in page.text and "gone/599" not in page.text
    worst = table.sort_values("robust_accuracy").head(500)
    pd.testing.assert_frame_equal(lowest(table), worst)
    assert len(lowest(table.head(2))) == 2


def test_a_page_names_the_attacks_that_it_has_no_matrix_of():
    data = report_data()
    attack = next(iter(data.transfer_matrices))
    assert "lowest robust accuracy on average" not in Page(render_report(data)).text
    cut = report_data(transfer_matrices={attack: data.transfer_matrices[attack]})
    said = "Of 2 attacks the 1 that leave the models the lowest robust accuracy on average."
    assert (said in Page(render_report(cut)).text) == (data.metrics["attack"].nunique() == 2)
