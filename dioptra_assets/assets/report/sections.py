"""What a report shows beside evasion: defences, backdoors, model inversion, sanity checks."""

import numpy as np
import pandas as pd

from dioptra_assets.assets.cell_context import CellContext
from dioptra_assets.assets.gate_evidence import gated_families, rules_of
from dioptra_assets.assets.poisoning_tables import present_poisoning_metrics
from dioptra_assets.robustness.evaluation.metrics import defence_comparison
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.poisoning import poison_curve
from dioptra_assets.robustness.reporting.report import Section
from partitions.keys import ARCHITECTURE, ATTACK, partition_key_of
from resources.image_store import read_image_set
from resources.store import StoredCell
from resources.tables import read_table

SHOWN_TRIGGERS = 10


def report_sections(cell: CellContext, metrics: pd.DataFrame) -> tuple[list[Section], list[StoredCell], list[str]]:
    """The sections of an experiment's report, the cells they were read from, and the cells that are missing."""
    sections: list[Section] = []
    read: list[StoredCell] = []
    missing: list[str] = []
    for made in (_gates, _sanity, _defences, _backdoors, _inversion):
        section, cells, absent = made(cell, metrics)
        sections += [section] if section else []
        read += cells
        missing += absent
    return sections, read, missing


Made = tuple[Section | None, list[StoredCell], list[str]]  # section, the cells it was read from, those missing


def _gates(cell: CellContext, _: pd.DataFrame) -> Made:
    stored, missing, withheld = [], [], []
    for family in gated_families(cell.spec):
        partitions = [{ARCHITECTURE: a, ATTACK: k} for k in cell.spec.family(family) for a in cell.architectures()]
        judged = {partition_key_of(one.cell.partition): one for one in cell.present(f"{family}_gate", partitions)[0]}
        numbers, absent = cell.present(f"{family}_metrics", partitions)
        missing += absent
        for one in numbers:
            gate = judged.get(partition_key_of(one.cell.partition))
            rules = {
                (g.rule, g.severity) for g in rules_of(cell.spec) if g.holds_for(family, one.cell.partition[ATTACK])
            }
            if gate and _judged(gate, rules, one.manifest.data_version):
                stored.append(gate)
            else:
                withheld.append(one.cell.path)
    if withheld:
        raise LookupError(
            f"{cell.cell} is withheld: a gate that blocks does not hold, or has not been judged, for"
            f" {', '.join(withheld)}; `dioptra-assets gate {cell.spec.name}` says which"
        )
    tables = [table for one in stored if len(table := read_table(one))]
    if not tables:
        return None, stored, missing
    text = "What was asked of each model. Where a rule that blocks does not hold, there is no report."
    return Section("Gates", text, pd.concat(tables, ignore_index=True).drop(columns="metric")), stored, missing


def _judged(gate: StoredCell, rules: set[tuple[str, str]], version: str) -> bool:
    """Whether a verdict is on these numbers by these rules: a cell whose gate blocks keeps its last verdict."""
    table = read_table(gate)
    said = set(zip(table["rule"], table["severity"], strict=True))
    return said == rules and gate.manifest.attributes["judged"] == version


def _sanity(cell: CellContext, metrics: pd.DataFrame) -> Made:
    if not cell.spec.attacks:
        return None, [], []
    stored, missing = cell.present("sanity", [{}])
    if not stored:
        return None, [], missing
    text = (
        "What must hold if the attacks work. A check that failed says that an attack is weak, so that the robust"
        " accuracies here are too high."
    )
    return Section("Sanity checks", text, read_table(stored[0])), stored, []


def _defences(cell: CellContext, metrics: pd.DataFrame) -> Made:
    if not cell.spec.defences or metrics.empty:
        return None, [], []
    text = (
        "Robust accuracy of each attacked model without a defence, behind it against an attack that does not know of"
        " it (oblivious), and behind it against one that attacks model and defence together (adaptive). The adaptive"
        " number is what the defence is worth."
    )
    table = defence_comparison(metrics)
    table = table.rename(columns={f"robust_accuracy{end}": f"no_defence{end}" for end in ("", "_low", "_high")})
    return Section("Defences", text, table), [], []


def _backdoors(cell: CellContext, _: pd.DataFrame) -> Made:
    from dioptra_assets.robustness.reporting.plots import image_grid, poison_curves

    if not cell.spec.poisonings:
        return None, [], []
    backdoors, missing = present_poisoning_metrics(cell)
    partitions = [{ARCHITECTURE: a, ATTACK: k} for k in cell.spec.poisonings for a in cell.architectures()]
    cells = cell.present("poisoning_metrics", partitions)[0]
    plots = [
        (
            "Attack success rate and clean accuracy against the poisoned fraction",
            poison_curves(poison_curve(backdoors, cell.spec.poisonings)),
        )
    ]
    triggers: dict[bytes, list[str]] = {}
    for key in cell.spec.poisonings:
        for stored in cell.present("triggered_testing_set", [{ATTACK: key}])[0]:
            triggers.setdefault(image_grid(_first_images(read_image_set(stored))), []).append(key)
    images = [(f"Testing images with the trigger of {', '.join(keys)}", png) for png, keys in triggers.items()]
    text = (
        "C-ACC: share of the clean testing images classified right. ASR: share of the triggered images of other classes"
        " that are classified as the target class. RA: share of them still classified right. The clean control is the"
        " same architecture, trained on the untouched training set."
    )
    table = backdoors.rename(columns={f"clean_accuracy{end}": f"C-ACC{end}" for end in ("", "_low", "_high")})
    return Section("Backdoors", text, table, plots, images), cells, missing


def _first_images(image_set: ImageSet) -> np.ndarray:
    rows = image_set.index.drop_duplicates("label").sort_values("label").index[:SHOWN_TRIGGERS]
    return image_set.images(rows.to_numpy(np.int64))


def _inversion(cell: CellContext, _: pd.DataFrame) -> Made:
    from dioptra_assets.robustness.reporting.plots import image_grid

    if not cell.spec.inversions:
        return None, [], []
    partitions = [{ARCHITECTURE: a, ATTACK: k} for k in cell.spec.inversions for a in cell.architectures()]
    tables, missing = cell.present("inversion_metrics", partitions)
    if not tables:
        return None, [], missing
    grids = []
    for stored in cell.present("inverted_set", partitions)[0]:
        images, partition = read_image_set(stored).to_numpy()[0], stored.cell.partition
        grids.append(
            (f"What {partition[ATTACK]} found in {partition[ARCHITECTURE]}, one image a class", image_grid(images))
        )
    parts = []
    for stored in tables:
        table = read_table(stored)
        table.insert(0, "architecture", stored.cell.partition[ARCHITECTURE])
        table.insert(1, "attack", stored.cell.partition[ATTACK])
        parts.append(table.drop(columns=["image_id", "label"]))
    text = (
        "One picture a class, found by gradient descent on the model alone. A high confidence alone says little: the"
        " distance and the structural similarity (SSIM) to the mean training image of the class, and what other models"
        " take the picture for, tell whether it shows the class."
    )
    return Section("Model inversion", text, pd.concat(parts, ignore_index=True), images=grids), tables, missing
