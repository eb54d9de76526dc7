"""The report of an experiment: one self-contained HTML page.

Pictures are embedded, styles are inline, there is no script, and the page asks nothing of any server. All text that
comes from data (names of classes, models, attacks, files) is escaped by the template engine.
"""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

KEYS = ["source", "attack", "target", "defence", "adaptive"]
STATISTICS = ("mean", "median", "stdev", "iqr", "min", "max")
LABELS = {
    **{"asr": "ASR", "auc": "AUC", "n": "n", "stdev": "stdev", "iqr": "IQR"},
    **{"l0": "L0", "l1": "L1", "l2": "L2", "linf": "Linf", "source": "made on", "target": "evaluated on"},
    **{"target_class": "target class", "ssim": "SSIM"},
}
THREAT_FACTS = {
    "nist_class": "NIST class",
    "knowledge": "knowledge",
    "goal": "goal",
    "norm": "norm",
    "budget": "budget",
}
# The part of a figure's name before its first "/" says what it shows; the rest says of what.
FIGURE_KINDS = {
    "loss_curves": "Loss and accuracy of {} while it was trained",
    "transfer_matrix": "Transfer matrix of {}",
    "security_curves": "Security curves {}: accuracy against eps, with 95 % intervals",
    "confusion_matrix": "Confusion matrix of {}",
}


# What a page can show and still be opened: rows of a table, models with pictures of their own.
SHOWN_ROWS = 500
SHOWN_MODELS = 24
# Of more systems and threat models than this the headline is a table.
SHOWN_CARDS = 24
# Rows of the metric table that a JSON document can hold; more lie beside it as Parquet, and the worst stand in it.
MOST_ROWS = 20_000
METRICS_FILE = "{}.metrics.parquet"


@dataclass(frozen=True)
class ReportData:
    """What a report shows. All rates are in [0, 1], with the ends of their 95 % interval in `_low` and `_high`.

    Attributes:
        experiment: name of the experiment.
        description: one paragraph on what is tested.
        data: one row an image set: `set`, `n`, `classes`, `size`, `data_version`.
        models: one row an architecture: `architecture`, `parameters`, `epochs`, `clean_accuracy`, `low`, `high`,
            `data_version`.
        attacks: one mapping an attack config: `attack` (its key), `method`, `description`, `parameters`, and
            `threat_model` with `nist_class`, `knowledge`, `goal`, `norm` and `budget`.
        metrics: the metric table: `source`, `attack`, `target`, `defence`, `n`, `seed`, rates such as
            `robust_accuracy` with `robust_accuracy_low` and `_high`, and distances such as `l2_mean`.
        headline: the worst case over attacks, image by image: rows of `worst_case.WORST_CASE_COLUMNS`.
        transfer_matrices: attack key to robust accuracies; rows are sources, columns are targets, NaN is missing. Of
            many attacks those alone that leave the models the least.
        figures: name to PNG. A name is `loss_curves/ARCHITECTURE`, `transfer_matrix/ATTACK`, `security_curves`,
            `confusion_matrix/WHAT`, or free.
        grids: title and PNG of comparison grids.
        provenance: one row a stored value: `asset`, `partition`, `data_version`, `seed`, and `device` where known.
        versions: software name to version.
        missing: cells that the report should have had, in words.
        commands: what to type to get the same report, in order.
        sections: what else the experiment measured.
        seed: of the experiment, that every cell's seed is derived from.
        declaration: its experiment file, defaults left out.
        files: name and description of the files that lie beside the page.
    """

    experiment: str
    description: str
    data: pd.DataFrame
    models: pd.DataFrame
    attacks: Sequence[Mapping[str, Any]]
    metrics: pd.DataFrame
    headline: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfer_matrices: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    grids: Sequence[tuple[str, bytes]] = ()
    provenance: pd.DataFrame = field(default_factory=pd.DataFrame)
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    commands: Sequence[str] = ()
    sections: Sequence["Section"] = ()
    seed: int = 0
    declaration: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Section:
    """One more part of a report: defences, backdoors, model inversion, sanity checks.

    Attributes:
        title: its heading.
        text: one paragraph that says how to read it.
        table: what was measured; a rate has the ends of its 95 % interval in `_low` and `_high`.
        plots: caption and PNG of each.
        images: caption and PNG of grids of images, which are shown as they are.
    """

    title: str
    text: str
    table: pd.DataFrame
    plots: Sequence[tuple[str, bytes]] = ()
    images: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, a second part shown more quietly, and how it is set."""

    text: str
    interval: str = ""
    kind: str = "text"
    full: str = ""


@dataclass(frozen=True)
class Table:
    """A table ready to print; `note` says which rows are shown where that is not all."""

    caption: str
    headings: list[Cell]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG ready to embed; width and height are CSS pixels, half of the stored ones: sharp on dense screens too.

    A plot follows the colours of the page, which images of the data must not.
    """

    source: str
    width: int
    height: int
    caption: str
    alt: str
    plot: bool


def render_report(data: ReportData) -> str:
    """The whole report as one HTML page; the same data give the same text.

    Raises:
        ValueError: when a picture is not a PNG.
    """
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headlines = _headlines(data.headline)
    pictures = {name: _picture(name, png, data, headlines) for name, png in data.figures.items()}

    def of_kind(kind: str) -> list[Picture]:
        return [picture for name, picture in pictures.items() if name.split("/")[0] == kind]

    measured = data.metrics["attack"].nunique() if "attack" in data.metrics else 0
    return environment.get_template("report.html.j2").render(
        report=data,
        shown_rows=SHOWN_ROWS,
        shown_models=SHOWN_MODELS,
        metrics_file=next((file for file in data.files if file[0] == METRICS_FILE.format(data.experiment)), None),
        attacks_of_all=measured if 0 < len(data.transfer_matrices) < measured else 0,
        headlines=headlines[:SHOWN_CARDS],
        headline_table=_table(
            data.headline.assign(
                rests_on=np.where(data.headline["one_step"], "one-step attacks alone", "several steps")
            ).drop(columns="one_step")
            if len(data.headline)
            else pd.DataFrame(),
            "Worst case over attacks, image by image",
        ),
        # An experiment without evasion attacks has no parts on them; one whose cells are all missing says so.
        evasion=len(data.metrics) > 0 or not data.sections,
        attack_groups=_attack_groups(data.attacks),
        data_table=_table(data.data, "Image sets"),
        model_table=_table(data.models.rename(columns={e: f"clean_accuracy_{e}" for e in ("low", "high")}), "Models"),
        loss_curves=of_kind("loss_curves"),
        confusions=of_kind("confusion_matrix"),
        matrices=[
            (attack, pictures.get(f"transfer_matrix/{attack}"), _matrix_table(attack, matrix, data.metrics))
            for attack, matrix in data.transfer_matrices.items()
        ],
        figures=[p for name, p in pictures.items() if name.split("/")[0] not in _PLACED],
        rates=_table(data.metrics[_rate_columns(data.metrics)], "Metric table"),
        distances=_distances(data.metrics),
        grids=[_embedded(title, png, f"{title}. {_GRID_ALT}", plot=False) for title, png in data.grids],
        sections=[
            (
                section,
                _table(section.table, section.title),
                [
                    _embedded(caption, png, caption, plot=plot)
                    for pictures, plot in ((section.plots, True), (section.images, False))
                    for caption, png in pictures
                ],
            )
            for section in data.sections
        ],
        provenance=_table(data.provenance, "Stored values", shorten=False),
        declaration=yaml.safe_dump(dict(data.declaration), sort_keys=False, allow_unicode=True, width=100)
        if data.declaration
        else "",
    )


_PLACED = (
    "loss_curves",
    "transfer_matrix",
    "confusion_matrix",
)  # these have a section; other figures follow the curves
_GRID_ALT = (
    "Top row: clean images; middle row: adversarial images; bottom row: their difference, mid grey is unchanged."
)


def rate(value: float, low: float = math.nan, high: float = math.nan) -> tuple[str, str]:
    """A rate in [0, 1] and its interval, as `12.3 %` and `[11.7, 13.0]`."""
    if pd.isna(value):
        return "–", ""
    interval = "" if pd.isna(low) or pd.isna(high) else f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %", interval


def _rate_columns(metrics: pd.DataFrame) -> list[str]:
    """Everything but distances; whether an attack is adaptive says something only beside a defence."""
    plain = "adaptive" in metrics and not metrics["adaptive"].any()
    return [c for c in map(str, metrics) if not _is_distance(c) and not (plain and c == "adaptive")]


def _headlines(worst: pd.DataFrame) -> list[dict[str, Any]]:
    """For each threat model, what is left of each model: a card a row of the worst cases."""
    return [
        {
            "model": row["target"],
            "defence": "" if row["defence"] in ("none", "–") else row["defence"],
            "threat": row["threat"],
            "robust": rate(*_ends(row, "robust_accuracy")),
            "clean": rate(*_ends(row, "clean_accuracy")),
            "attacks": row["attacks"],
            "one_step": bool(row["one_step"]),
            "n": f"{int(row['n']):,}",
            "robust_width": f"{100 * np.nan_to_num(row['robust_accuracy']):.1f}",
            "clean_width": f"{100 * np.nan_to_num(row['clean_accuracy']):.1f}",
        }
        for _, row in worst.iterrows()
    ]


def _attack_groups(attacks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Attack configs of one method and one threat model together: a sweep differs in little, and that is shown."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for attack in attacks:
        model = attack.get("threat_model", {})
        facts = [_plain(model.get(fact)) for fact in ("nist_class", "knowledge", "goal", "norm")]
        groups.setdefault(repr([attack.get("method"), attack.get("description"), *facts]), []).append(attack)
    return [_attack_group(members) for members in groups.values()]


def _attack_group(members: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = members[0]
    names = list(dict.fromkeys(name for attack in members for name in attack.get("parameters", {})))
    values = {name: [_plain(attack.get("parameters", {}).get(name)) for attack in members] for name in names}
    varied = [name for name in names if len(set(values[name])) > 1]
    rows = [
        [
            Cell(str(attack["attack"]), kind="name"),
            Cell(_plain(attack.get("threat_model", {}).get("budget"))),
            *(Cell(values[name][i], kind="number") for name in varied),
        ]
        for i, attack in enumerate(members[:SHOWN_ROWS])
    ]
    note = f"The first {SHOWN_ROWS} of {len(members):,} configs." if len(members) > SHOWN_ROWS else ""
    model = first.get("threat_model", {})
    return {
        "method": first.get("method", ""),
        "description": first.get("description", ""),
        "facts": [(label, _plain(model.get(name))) for name, label in THREAT_FACTS.items() if name != "budget"],
        "shared": [f"{name}={values[name][0]}" for name in names if name not in varied],
        "table": Table(
            f"Attack configs of {first.get('method', '')}",
            [Cell("attack"), Cell("budget"), *(Cell(name, kind="number") for name in varied)],
            rows,
            note,
        ),
    }


def _table(frame: pd.DataFrame, caption: str, *, shorten: bool = True) -> Table:
    """A data frame as a table: each rate with its interval in one cell, digests shortened where they are no help."""
    columns = [str(c) for c in frame]
    rates = [c for c in columns if f"{c}_low" in columns and f"{c}_high" in columns]
    shown = [c for c in columns if not any(c in (f"{r}_low", f"{r}_high") for r in rates)]
    # What is read first stands first; a seed is only looked up, and is as wide as three rates.
    keys = ["architecture", *(key for key in KEYS if key not in rates)]
    shown.sort(key=lambda c: keys.index(c) if c in keys else len(keys) + (c == "seed" and bool(rates)))

    def cell(row: pd.Series, column: str) -> Cell:
        value = row[column]
        if column in rates and column != "auc":
            return Cell(*rate(*_ends(row, column)), kind="number")
        if column in rates:
            low, high = row["auc_low"], row["auc_high"]
            interval = "" if pd.isna(low) or pd.isna(high) else f"[{low:.3f}, {high:.3f}]"
            return Cell("–" if pd.isna(value) else f"{value:.3f}", interval, kind="number")
        if column == "data_version":
            text = _plain(value)
            return Cell(text[:12] if shorten else text, kind="code", full=text)
        return Cell(_plain(value, grouped=column != "seed"), kind=kinds[column])

    kinds = {c: "number" if c in rates or pd.api.types.is_numeric_dtype(frame[c]) else "text" for c in shown}
    kinds.update({c: "name" for c in (*keys, "set", "asset", "partition") if c in shown})
    headings = [Cell(_label(c), kind=kinds[c]) for c in shown]
    part, note = _first(frame)
    return Table(caption, headings, [[cell(row, c) for c in shown] for _, row in part.iterrows()], note)


def _first(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of a table that are shown, and which they are."""
    if len(frame) <= SHOWN_ROWS:
        return frame, ""
    if "robust_accuracy" in frame:
        return lowest(frame), f"The {SHOWN_ROWS} of {len(frame):,} rows with the lowest robust accuracy."
    return frame[:SHOWN_ROWS], f"The first {SHOWN_ROWS} of {len(frame):,} rows."


def lowest(metrics: pd.DataFrame) -> pd.DataFrame:
    """As many rows of a metric table as are shown: those with the lowest robust accuracy, the worst first."""
    order = np.argsort(metrics["robust_accuracy"].to_numpy(float), kind="stable")  # what is not known comes last
    return metrics.iloc[order[:SHOWN_ROWS]]


def _matrix_table(attack: str, matrix: pd.DataFrame, metrics: pd.DataFrame) -> Table:
    """A transfer matrix with the intervals that the metric table has for its cells."""
    known = {}
    if not metrics.empty and {"source", "attack", "target", "robust_accuracy"} <= set(metrics):
        for _, row in metrics[metrics["attack"] == attack].iterrows():
            known[row["source"], row["target"], row["robust_accuracy"]] = _ends(row, "robust_accuracy")
    rows = []
    for source, values in zip(matrix.index, matrix.to_numpy(float), strict=True):
        cells = [rate(*known.get((source, t, v), (v,))) for t, v in zip(matrix.columns, values, strict=True)]
        numbers = [Cell("missing" if text == "–" else text, interval, "number") for text, interval in cells]
        rows.append([Cell(str(source), kind="name"), *numbers])
    headings = [Cell("made on", kind="name"), *(Cell(str(target), kind="number") for target in matrix.columns)]
    return Table(f"Robust accuracy under {attack}: evaluated on", headings, rows)


def _distances(metrics: pd.DataFrame) -> Table:
    """One row a set and distance; the size of a perturbation does not depend on the model that looks at it."""
    names = list(dict.fromkeys(str(c).rpartition("_")[0] for c in metrics if _is_distance(str(c))))
    keys = [c for c in KEYS if c in metrics]
    long = []
    for name in names:
        columns = {f"{name}_{statistic}": statistic for statistic in STATISTICS if f"{name}_{statistic}" in metrics}
        part = metrics[keys + list(columns)].rename(columns=columns)
        part.insert(len(keys), "distance", _label(name))
        long.append(part)
    frame = pd.concat(long) if long else pd.DataFrame()
    unique = frame.drop(columns="target", errors="ignore").drop_duplicates()
    of_set = [c for c in (*KEYS, "distance") if c in unique]
    same_for_all = long and not unique.duplicated(of_set).any()
    return _table(unique if same_for_all else frame, "Size of the perturbations")


def _picture(name: str, png: bytes, data: ReportData, headlines: list[dict[str, Any]]) -> Picture:
    kind, _, what = name.partition("/")
    caption = " ".join(FIGURE_KINDS[kind].format(what).split()).replace(" :", ":") if kind in FIGURE_KINDS else name
    alt = caption
    if kind == "transfer_matrix" and what in data.transfer_matrices:
        matrix = data.transfer_matrices[what]
        pairs = [(source, target) for source in matrix.index for target in matrix.columns]
        cells = sorted(
            (v, *pair) for v, pair in zip(matrix.to_numpy(float).flat, pairs, strict=True) if not np.isnan(v)
        )
        ends = [("lowest", *cells[0]), ("highest", *cells[-1])] if cells else []
        told = [f"{end} {rate(v)[0]}, made on {source}, evaluated on {target}" for end, v, source, target in ends]
        # The heading and the picture already name the attack.
        caption = f"Robust accuracy: {'; '.join(told) or 'missing in every cell'}"
        alt = f"{alt}. {caption}."
    elif kind == "security_curves" and headlines:
        told = [
            f"{h['model']} falls from {h['clean'][0]} clean to {h['robust'][0]} within {h['threat']}" for h in headlines
        ]
        alt = f"{caption}. {'; '.join(told)}."
    elif kind == "loss_curves" and what in set(data.models.get("architecture", [])):
        row = data.models[data.models["architecture"] == what].iloc[0]
        alt = f"{caption}; clean accuracy at the end {rate(row['clean_accuracy'])[0]}."
    return _embedded(caption, png, alt, plot=True)


def _embedded(caption: str, png: bytes, alt: str, *, plot: bool) -> Picture:
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"the picture {caption!r} is not a PNG")
    width, height = struct.unpack(">II", png[16:24])
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return Picture(source, width // 2, height // 2, caption, alt, plot)


def _ends(row: pd.Series, column: str) -> tuple[float, float, float]:
    return (row.get(column, math.nan), row.get(f"{column}_low", math.nan), row.get(f"{column}_high", math.nan))


def _is_distance(column: str) -> bool:
    return column.rpartition("_")[2] in STATISTICS and "_" in column


def _label(column: str) -> str:
    return " ".join(LABELS.get(part, part) for part in ([column] if column in LABELS else column.split("_")))


def _plain(value: Any, *, grouped: bool = True) -> str:
    """A value as a person writes it in the experiment file; what is not there is a dash."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, float | np.floating):
        return f"{value:.0f}" if not grouped and value == int(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item, grouped=grouped) for item in value)
    return str(value)
