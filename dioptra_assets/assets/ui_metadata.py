"""How facts about a cell, and the columns of its table, are shown in the UI."""

import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

# The entry that names the MLflow run of a cell.
MLFLOW_RUN_ID = "mlflow_run_id"
_BOOLEANS = {"eligible", "passed", "success", "zero_gradient"}
_INTEGERS = {
    *(
        "adversarial_prediction",
        "clean_prediction",
        "compared",
        "iterations",
        "label",
        "nearest_class_mean",
        "new_label",
    ),
    *("old_label", "prediction", "row", "seed", "target_class", "triggered_prediction", "version", "l0"),
}
_TEXTS = {
    *(
        "against",
        "architecture",
        "attack",
        "check",
        "class_name",
        "defence",
        "family",
        "findings",
        "image_id",
        "judged",
    ),
    *(
        "looked_at",
        "metric",
        "model_kind",
        "name",
        "rule",
        "severity",
        "source",
        "status",
        "stop_reason",
        "target",
        "why",
    ),
}
# What a name stands for in one table, where it stands for something else in the others.
_IN_ONE_TABLE = {("defence_comparison", "adaptive"): "float"}


def shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata under names without spaces, its floats with six digits: tables hold the exact numbers."""
    return {re.sub("[ ,]+", "_", name): _rounded(value) for name, value in metadata.items()}


def _rounded(value: Any) -> Any:
    number = value.value if isinstance(value, dg.FloatMetadataValue) else value
    return float(f"{number:.6g}") if isinstance(number, float) else value


def column_schema(asset: str, columns: Mapping[str, str]) -> dg.TableSchema:
    """The columns of an asset's table, column -> description, each with the type that its name stands for."""
    return dg.TableSchema([dg.TableColumn(name, column_type(asset, name), text) for name, text in columns.items()])


def column_type(asset: str, name: str) -> str:
    """The type of a column; one that no name tells of is a measured number."""
    if (asset, name) in _IN_ONE_TABLE:
        return _IN_ONE_TABLE[asset, name]
    if name in _TEXTS:
        return "string"
    if name in _BOOLEANS or name == "adaptive":
        return "bool"
    if name in _INTEGERS or name == "n" or name.endswith("_n"):
        return "int"
    if name == "registered":
        return "timestamp"
    return "list[float]" if name.endswith("probabilities") else "float"
