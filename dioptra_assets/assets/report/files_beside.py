"""What lies beside the page of a report: the same as JSON, a model card of the models, a record of the image sets."""

import pandas as pd

from dioptra_assets.assets.cell_context import CellContext
from dioptra_assets.assets.defended_sets import model_behind
from dioptra_assets.assets.poisoning_tables import present_poisoning_metrics
from dioptra_assets.assets.report.inputs import ReportInputs
from dioptra_assets.records.croissant import croissant
from dioptra_assets.records.model_card import SPECIMEN, ModelRecord, Rate, model_card
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.reporting.document import report_document, to_json
from dioptra_assets.robustness.reporting.report import MOST_ROWS, SHOWN_ROWS, ReportData, lowest
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import StoredCell
from resources.tables import to_parquet

EVASION_RATES = ("robust_accuracy", "asr")
TRIGGERED_RATES = ("asr", "ra")
CLEAN = "the testing set, untouched"


def report_records(cell: CellContext, data: ReportData, inputs: ReportInputs) -> dict[str, bytes]:
    """The files beside the page of a report, by their names: as `data.files` names them, in its order."""
    models = _models(cell, data, inputs)
    contents = [
        to_json(report_document(data)),
        model_card(data.experiment, data.description, models, inputs.sets[0], data.versions),
        croissant(data.experiment, data.description, inputs.sets),
        *([to_parquet(data.metrics)] if len(data.metrics) > MOST_ROWS else []),
    ]
    return {name: content for (name, _), content in zip(data.files, contents, strict=True)}


def _models(cell: CellContext, data: ReportData, inputs: ReportInputs) -> list[ModelRecord]:
    poisoned = present_poisoning_metrics(cell)[0] if cell.spec.poisonings else pd.DataFrame()
    limits = _limitations(data)
    records = []
    for stored, trained_on in inputs.models:
        if stored.cell.asset.endswith("/poisoned_model"):
            records.append(ModelRecord(stored, trained_on, _backdoor_rates(stored, poisoned), [SPECIMEN]))
        else:
            attacked = _attacked_rows(cell, stored, data.metrics)
            told, own_limits = attacked, limits
            if len(attacked) > SHOWN_ROWS:
                told = lowest(attacked)
                cut = f"Of {len(attacked):,} attacked sets the {SHOWN_ROWS} of the lowest robust accuracy are told;"
                own_limits = [*limits, f"{cut} all stand in the metric tables."]
            rates = _clean_rates(stored, data.models) + _evasion_rates(told)
            records.append(ModelRecord(stored, trained_on, rates, own_limits))
    return records


def _limitations(data: ReportData) -> list[str]:
    """What this very experiment has to say against its numbers."""
    failed = [
        f"The sanity check {row['check']} failed: {row['findings']}"
        for section in data.sections
        if "check" in section.table
        for _, row in section.table.iterrows()
        if row["status"] == "failed"
    ]
    missing = (
        f"{len(data.missing)} cells of the experiment were missing; the numbers they would have given may be worse."
    )
    return failed + ([missing] if data.missing else [])


def _clean_rates(stored: StoredCell, models: pd.DataFrame) -> list[Rate]:
    """Clean accuracy, of a model of the experiment itself; that of a defended one stands in its metrics."""
    if not stored.cell.asset.endswith("/model"):
        return []
    own = models[models["architecture"] == stored.cell.partition[ARCHITECTURE]]
    return [
        Rate("clean accuracy", CLEAN, row["clean_accuracy"], row["low"], row["high"])
        for _, row in own.dropna(subset=["clean_accuracy"]).iterrows()
    ]


def _attacked_rows(cell: CellContext, stored: StoredCell, metrics: pd.DataFrame) -> pd.DataFrame:
    """The metric rows of a model, alone and behind the defences that it stands behind."""
    if metrics.empty:
        return metrics
    asset = stored.cell.asset.removeprefix(f"{cell.spec.name}/")
    defences = [name for name, defence in cell.spec.defences.items() if model_behind(defence, name) == asset]
    defences += [NO_DEFENCE] if asset == "model" else []
    return metrics[(metrics["target"] == stored.cell.partition[ARCHITECTURE]) & metrics["defence"].isin(defences)]


def _evasion_rates(rows: pd.DataFrame) -> list[Rate]:
    """What every attack did to a model."""
    rates = []
    for _, row in rows.iterrows():
        if row["defence"] != NO_DEFENCE:  # that of the model alone has been told
            rates += _rates(row, f"{CLEAN}, behind {row['defence']}; n {row['n']}", ("clean_accuracy",))
        rates += _rates(row, _attacked(row), EVASION_RATES)
    return list(dict.fromkeys(rates))


def _attacked(row: pd.Series) -> str:
    made = "white-box" if row["source"] == row["target"] else "transferred"
    text = f"{row['attack']} made on {row['source']} ({made})"
    if row["defence"] != NO_DEFENCE:
        knowing = "adaptive: the attack knows it" if row["adaptive"] else "oblivious: the attack does not know it"
        text += f", behind {row['defence']} ({knowing})"
    return f"{text}; n {row['n']}, seed {row['seed']}"


def _backdoor_rates(stored: StoredCell, metrics: pd.DataFrame) -> list[Rate]:
    """C-ACC, ASR and RA of a poisoned model."""
    partition = stored.cell.partition
    own = metrics[
        (metrics["architecture"] == partition[ARCHITECTURE])
        & (metrics["attack"] == partition[ATTACK])
        & (metrics["model_kind"] == "poisoned")
    ]
    rates = []
    for _, row in own.iterrows():
        behind = "" if row["defence"] == NO_DEFENCE else f", behind {row['defence']}"
        rates += _rates(row, f"{CLEAN}{behind}; n {row['n']}", ("clean_accuracy",))
        rates += _rates(row, f"images with the trigger of {row['attack']}{behind}; n {row['asr_n']}", TRIGGERED_RATES)
    return rates


def _rates(row: pd.Series, on: str, names: tuple[str, ...]) -> list[Rate]:
    """The rates of a row that are known: the attack success rate of a model that is never right is not."""
    called = {"asr": "attack success rate", "ra": "robust accuracy"}
    return [
        Rate(called.get(name, name.replace("_", " ")), on, row[name], row[f"{name}_low"], row[f"{name}_high"])
        for name in names
        if not pd.isna(row[name])
    ]
