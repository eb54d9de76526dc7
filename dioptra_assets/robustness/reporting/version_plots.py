"""Accuracy of a registered model from version to version, as a picture in the style of :mod:`plots`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.reporting.plots import (
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    _figure,
    _need,
    _percent_axis,
    _png,
    _short,
    _style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_ATTACKS = len(PALETTE)
SHOWN_MODELS = 9
# Panels in a row -> labels under one; more would run into each other.
SHOWN_DATES = {1: 7, 2: 4, 3: 4}
RATES = ("clean_accuracy", "robust_accuracy")


def version_curves(table: pd.DataFrame) -> bytes:
    """Clean and robust accuracy against the version, with 95 % intervals: one panel a registered model.

    Each attack has its colour and marker; the clean accuracy is black. Of more than seven attacks seven are drawn, from
    the strongest to the weakest, of more than nine models those registered last; the legend and the heading say so.

    Args:
        table: one row a version and attack: `name`, `version` (whole number), `registered` (time), `attack`, and
            `clean_accuracy` and `robust_accuracy` in [0, 1], each with `_low` and `_high`.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when a column is missing or there is no row.
    """
    ends = [f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")]
    _need(table, ["name", "version", "registered", "attack", *ends], "table")
    latest = table.groupby("name")["registered"].max().sort_values(ascending=False, kind="stable")
    names = sorted(latest.index[:SHOWN_MODELS])
    table = table[table["name"].isin(names)]
    by_strength = table.groupby("attack", sort=False)["robust_accuracy"].mean().sort_values(kind="stable").index
    spread = np.linspace(0, len(by_strength) - 1, min(SHOWN_ATTACKS, len(by_strength))).round().astype(int)
    attacks = [attack for attack in dict.fromkeys(table["attack"]) if attack in set(by_strength[spread])]
    across = min(3, len(names))
    down = -(-len(names) // across)
    with _style():
        figure = _figure(2.6 + (5.0 if across == 1 else 3.4 * across), max(3.2 * down, 0.24 * len(attacks) + 1.6))
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(panels.flat, names, strict=False):
            _panel(axes, table[table["name"] == name], attacks, SHOWN_DATES[across])
            axes.set_title(_short(name, 36))
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        title = "attack" if len(by_strength) == len(attacks) else f"{len(attacks)} of {len(by_strength)} attacks"
        figure.legend(
            handles, labels, loc="outside right upper", fontsize=8, title=title, alignment="left", title_fontsize=8
        )
        if len(latest) > len(names):
            figure.suptitle(f"the {len(names)} of {len(latest)} models registered last", fontsize=9, color=MUTED)
        return _png(figure)


def _panel(axes: "Axes", table: pd.DataFrame, attacks: list[str], most: int) -> None:
    versions: Any = table.drop_duplicates("version").sort_values(by="version")
    places = {version: place for place, version in enumerate(versions["version"])}
    _line(axes, versions, "clean_accuracy", places, {"color": INK, "mfc": "white", "marker": "o", "label": "clean"})
    for number, attack in enumerate(attacks):
        rows = table[table["attack"] == attack].sort_values(by="version")
        look = {"color": PALETTE[number], "marker": MARKERS[number % len(MARKERS)], "label": _short(attack, 26)}
        _line(axes, rows, "robust_accuracy", places, look)
    # The last version always has its label.
    step = -(-len(places) // most)
    shown = list(range(len(places)))[::-step]
    labels = [f"{versions['version'].iloc[i]}\n{versions['registered'].iloc[i]:%Y-%m-%d\n%H:%M}" for i in shown]
    axes.set_xticks(shown, labels, fontsize=8)
    axes.set_xlabel("version, registered (UTC)")
    axes.set_xlim(-0.5, max(places.values()) + 0.5)
    axes.set_ylim(-0.02, 1.04)
    axes.grid(False, axis="x")
    _percent_axis(axes)


def _line(axes: "Axes", rows: pd.DataFrame, rate: str, places: dict[int, int], look: dict[str, Any]) -> None:
    at = rows["version"].map(places)
    # Whiskers and no band: between two versions there is no model.
    below, above = rows[rate] - rows[f"{rate}_low"], rows[f"{rate}_high"] - rows[rate]
    ends = np.maximum([below, above], 0)
    axes.errorbar(at.to_numpy(), rows[rate].to_numpy(), yerr=ends, capsize=3, elinewidth=1, **look)
