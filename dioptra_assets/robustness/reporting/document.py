"""The report of an experiment as one JSON document: what the page says, without its pictures."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from dioptra_assets.robustness.reporting.report import MOST_ROWS, ReportData, Section, lowest

FORMAT = 1
Record = dict[str, Any]


class Document(BaseModel):
    """A part of the document: its fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AttackDocument(Document):
    """One attack config."""

    attack: str = Field(description="its key")
    method: str
    description: str
    parameters: Record = Field(description="every parameter, defaults too")
    threat_model: Record = Field(description="nist_class, knowledge, goal, norm and budget")


class SectionDocument(Document):
    """One part of the report beside evasion: gates, sanity checks, defences, backdoors, model inversion."""

    title: str
    text: str = Field(description="how to read it")
    table: list[Record] = Field(description="a rate has the ends of its 95 % interval in `_low` and `_high`")


class ProvenanceDocument(Document):
    """One stored value that the report was made from."""

    asset: str
    partition: str = Field(description="Dagster's partition key, empty where the asset has none")
    data_version: str = Field(description="hash of the content")
    seed: int | None = Field(
        default=None, description="that everything random in it was drawn from, where anything was"
    )
    device: str | None = Field(default=None, description="that it was computed on, where that is known")


class ReportDocument(Document):
    """The report of an experiment. Rates lie in [0, 1]; null is a number that is not known."""

    format: Literal[1] = FORMAT
    experiment: str
    description: str
    seed: int = Field(description="of the experiment; every cell's seed is derived from it")
    declaration: Record = Field(description="the experiment file, defaults left out")
    image_sets: list[Record] = Field(description="set, n, classes, size, data_version")
    models: list[Record] = Field(
        description="architecture, parameters, epochs, clean_accuracy with its 95 % interval low to high, data_version"
    )
    attacks: list[AttackDocument]
    headline: list[Record] = Field(
        description="the worst case over attacks, image by image, of each model and threat model: target, defence,"
        " threat, robust_accuracy and clean_accuracy with their 95 % intervals, n, attacks, one_step"
    )
    metrics: list[Record] = Field(
        description="the metric table: one row for each source, attack, target and defence; of more than"
        " 20,000 rows the 500 of the lowest robust accuracy, and all beside it in EXPERIMENT.metrics.parquet"
    )
    sections: dict[str, SectionDocument] = Field(
        description="gates, sanity_checks, defences, backdoors, model_inversion, as far as the experiment has them"
    )
    provenance: list[ProvenanceDocument]
    versions: dict[str, str] = Field(description="software -> version")
    missing: list[str] = Field(description="cells that the report should have had")
    commands: list[str] = Field(description="what to type to get the same report, in order")


def report_document(data: ReportData) -> ReportDocument:
    """The document of a report."""
    return ReportDocument(
        experiment=data.experiment,
        description=data.description,
        seed=data.seed,
        declaration=_plain(data.declaration),
        image_sets=_records(data.data),
        models=_records(data.models),
        attacks=[AttackDocument.model_validate(_plain(attack)) for attack in data.attacks],
        headline=_records(data.headline),
        metrics=_records(data.metrics if len(data.metrics) <= MOST_ROWS else lowest(data.metrics)),
        sections={_name(section): _section(section) for section in data.sections},
        provenance=[ProvenanceDocument.model_validate(row) for row in _records(data.provenance)],
        versions=dict(data.versions),
        missing=list(data.missing),
        commands=list(data.commands),
    )


def to_json(document: ReportDocument) -> bytes:
    """The document as JSON: the same report gives the same bytes. The order of architectures means something."""
    return _dumped(document.model_dump(mode="json"))


def schema() -> bytes:
    """The JSON schema (draft 2020-12) of the document."""
    return _dumped(
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | ReportDocument.model_json_schema(mode="serialization")
    )


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _section(section: Section) -> SectionDocument:
    return SectionDocument(title=section.title, text=section.text, table=_records(section.table))


def _name(section: Section) -> str:
    return re.sub(r"\W+", "_", section.title.lower())


def _records(frame: pd.DataFrame) -> list[Record]:
    return [_plain(row) for row in frame.to_dict(orient="records")]


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is not known is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
