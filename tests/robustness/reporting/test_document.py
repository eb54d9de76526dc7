import json
import math

import jsonschema
import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.reporting.document import report_document, schema, to_json
from dioptra_assets.robustness.reporting.report import MOST_ROWS, SHOWN_ROWS, ReportData, Section
from tests.robustness.reporting.test_report import report_data

pytestmark = pytest.mark.quick


def read(data: ReportData) -> dict:
    content = to_json(report_document(data))
    document = json.loads(content)
    jsonschema.Draft202012Validator(json.loads(schema())).validate(document)
    return document


def test_the_document_holds_the_numbers_of_the_page_and_follows_its_schema():
    data = report_data(seed=7, declaration={"type": "x", "attributes": {"seed": 7}})
    document = read(data)
    assert len(document["metrics"]) == len(data.metrics)
    for row, (_, expected) in zip(document["metrics"], data.metrics.iterrows(), strict=True):
        assert row == expected.to_dict()
    assert document["seed"] == document["declaration"]["attributes"]["seed"] == 7
    assert [row["architecture"] for row in document["models"]] == ["le_net", "shallow_net"]
    assert document["versions"] == data.versions and document["commands"] == data.commands


def test_of_more_rows_than_a_document_can_hold_the_worst_are_in_it():
    table = pd.concat([report_data().metrics] * 4000, ignore_index=True)[:MOST_ROWS]
    table["robust_accuracy"] = np.linspace(1, 0, len(table))
    assert len(report_document(report_data(metrics=table)).metrics) == len(table)
    more = pd.concat([table, table[:1]], ignore_index=True)
    assert [row["robust_accuracy"] for row in read(report_data(metrics=more))["metrics"]] == [
        *table["robust_accuracy"][: -SHOWN_ROWS - 1 : -1]
    ]


def test_sections_are_named_and_what_is_not_known_is_null():
    table = pd.DataFrame({"check": ["a", "b"], "compared": [3, np.nan], "value": [math.inf, 0.5], "ok": [True, None]})
    document = read(report_data(sections=[Section("Sanity checks", "How to read it.", table)]))
    assert document["sections"]["sanity_checks"]["table"] == [
        {"check": "a", "compared": 3.0, "value": None, "ok": True},
        {"check": "b", "compared": None, "value": 0.5, "ok": None},
    ]


def test_a_seed_beside_a_cell_without_one_stays_whole():
    rows = [
        {"asset": "x/testing_set", "partition": "", "data_version": "ab", "seed": None},
        {"asset": "x/model", "partition": "le_net", "data_version": "cd", "seed": 2**31 - 1, "device": "CPU"},
    ]
    provenance = read(report_data(provenance=pd.DataFrame(rows)))["provenance"]
    assert [row["seed"] for row in provenance] == [None, 2**31 - 1]
    assert [row["device"] for row in provenance] == [None, "CPU"]


def test_the_same_report_gives_the_same_bytes_and_keeps_the_order_of_its_experiment():
    declaration = {"attributes": {"architectures": {"le_net": {}, "alex_net": {}}}}
    content = to_json(report_document(report_data(declaration=declaration)))
    assert content == to_json(report_document(report_data(declaration=declaration)))
    assert list(json.loads(content)["declaration"]["attributes"]["architectures"]) == ["le_net", "alex_net"]


def test_the_schema_refuses_a_field_that_it_does_not_know():
    document = read(report_data())
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(document | {"surprise": 1}, json.loads(schema()))
