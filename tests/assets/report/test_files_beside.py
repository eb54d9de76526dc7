"""The files beside a report: each valid by its own format's validator, each true of what is stored."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import mlcroissant as mlc
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import dioptra_assets as da
from dioptra_assets.assets.report.contents import declaration
from dioptra_assets.records.croissant import _record, croissant
from dioptra_assets.records.model_card import FAMILIES, family
from dioptra_assets.robustness.reporting.document import schema
from dioptra_assets.robustness.training.architectures import ARCHITECTURES as NETWORKS
from partitions.experiments import parse_experiment
from resources.documents import read_records, read_report
from resources.image_store import read_image_set
from tests.conftest import ARCHITECTURES, ATTACKS, EXPERIMENT, ROOT, Lab

NAMES = ["tiny.report.json", "tiny.model_card.cdx.json", "tiny.croissant.json"]
SETS = {"tiny/testing_set", "tiny/training_set"} | {
    f"tiny/adversarial_set/{architecture}/{attack}" for architecture in ARCHITECTURES for attack in ATTACKS
}


def record(lab: Lab, name: str) -> dict[str, Any]:
    return json.loads(read_records(lab.find("report"))[f"tiny.{name}"])


def test_the_report_names_seed_versions_hash_of_every_input_and_the_experiment(looking: Lab) -> None:
    document = record(looking, "report.json")
    jsonschema.Draft202012Validator(json.loads(schema())).validate(document)
    assert document["seed"] == EXPERIMENT["seed"] and document["missing"] == []
    inputs = {
        "/".join(filter(None, (row["asset"], *row["partition"].split("|")))): row for row in document["provenance"]
    }
    assert SETS | {f"tiny/model/{a}" for a in ARCHITECTURES} <= set(inputs)
    for cell in looking.store.cells("tiny"):
        if cell.path in inputs:
            assert inputs[cell.path]["data_version"] == looking.store.open(cell).manifest.data_version
    assert (
        inputs["tiny/model/le_net"]["seed"] == looking.find("model", architecture="le_net").manifest.attributes["seed"]
    )
    assert {"Python", "tensorflow", "dioptra-assets"} <= set(document["versions"])
    declared = document["declaration"]["attributes"]
    assert declaration(parse_experiment("tiny", declared)) == document["declaration"]


def test_the_model_card_is_valid_and_holds_hash_and_rates_of_every_model(looking: Lab) -> None:
    content = read_records(looking.find("report"))["tiny.model_card.cdx.json"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode()) is None
    bill = json.loads(content)
    assert "timestamp" not in bill["metadata"]
    parts = {part["bom-ref"]: part for part in bill["components"]}
    models = {ref: part for ref, part in parts.items() if part["type"] == "machine-learning-model"}
    assert set(models) == {f"tiny/model/{architecture}" for architecture in ARCHITECTURES}
    document = record(looking, "report.json")
    for ref, part in models.items():
        architecture = ref.rsplit("/", 1)[-1]
        stored = looking.find("model", architecture=architecture)
        assert part["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(stored.read("model.keras")).hexdigest()}]
        card = part["modelCard"]
        assert all(data["ref"] in parts for data in card["modelParameters"]["datasets"])
        given = [
            (metric["value"], *metric["confidenceInterval"].values())
            for metric in card["quantitativeAnalysis"]["performanceMetrics"]
            if metric["type"] == "robust accuracy"
        ]
        assert given == [
            tuple(f"{row[f'robust_accuracy{end}']:.6g}" for end in ("", "_low", "_high"))
            for row in document["metrics"]
            if row["target"] == architecture
        ]
        assert len(given) == len(ARCHITECTURES) * len(ATTACKS)


def test_a_validator_would_have_seen_a_wrong_model_card(looking: Lab) -> None:
    bill = record(looking, "model_card.cdx.json")
    card = next(part["modelCard"] for part in bill["components"] if "modelCard" in part)
    card["quantitativeAnalysis"]["performanceMetrics"][0]["confidenceIntervall"] = {}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is not None


def test_every_architecture_has_a_family_for_its_model_card() -> None:
    assert set(FAMILIES) == set(NETWORKS)


def test_an_architecture_of_somebody_else_has_a_family_too() -> None:
    assert family("le_net") == "convolutional neural network"
    assert family("mine") == "neural network"


def test_the_croissant_record_is_valid_and_has_the_hash_of_every_file_of_every_set(looking: Lab) -> None:
    content = record(looking, "croissant.json")
    assert not mlc.Dataset(content).metadata.ctx.issues.errors
    files = {file["@id"]: file["sha256"] for file in content["distribution"]}
    expected = {
        f"{cell.path}/{name}": file.sha256
        for cell in looking.store.cells("tiny")
        if cell.path in SETS
        for name, file in looking.store.open(cell).manifest.files.items()
    }
    assert files == expected
    assert {one["@id"] for one in content["recordSet"]} == SETS | {"classes"}


def test_sets_that_are_alike_are_described_as_each_would_be(looking: Lab) -> None:
    sets = [looking.store.open(cell) for cell in looking.store.cells("tiny") if cell.path in SETS]
    one_by_one = json.dumps(_record("tiny", "what", sets), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert croissant("tiny", "what", sets).decode() == one_by_one


def test_what_is_exported_lies_beside_the_page_and_reads_the_sets_themselves(looking: Lab, tmp_path: Path) -> None:
    page = da.load("tiny/report").save(tmp_path / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([page.name, *NAMES])
    assert all(f'href="{name}"' in page.read_text() for name in NAMES)
    dataset = mlc.Dataset(tmp_path / "tiny.croissant.json")
    name = "tiny/adversarial_set/le_net/fgm_0.3"
    rows = list(dataset.records(name))
    index = read_image_set(looking.find("adversarial_set", architecture="le_net", attack="fgm_0.3")).index
    assert [row[f"{name}/image_id"].decode() for row in rows] == list(index["image_id"])
    assert [row[f"{name}/label"] for row in rows] == list(index["label"])
    assert [row["classes/name"] for row in dataset.records("classes")] == [str(digit) for digit in range(10)]


def test_a_set_that_is_another_than_the_record_says_is_refused(lab: Lab, tmp_path: Path) -> None:
    da.load("tiny/report").save(tmp_path / "page.html")
    path = tmp_path / "tiny.croissant.json"
    content = json.loads(path.read_text())
    index = next(file for file in content["distribution"] if file["@id"] == "tiny/testing_set/index.parquet")
    Path(index["contentUrl"]).write_bytes(b"another")
    with pytest.raises(mlc.GenerationError) as refused:
        list(mlc.Dataset(path).records("tiny/testing_set"))
    assert "is not identical with the reference" in str(refused.value.__cause__)


def test_the_same_cells_give_the_same_report_to_the_byte(lab: Lab, finished: Lab) -> None:
    first = finished.find("report")
    # Without what is stored it is written anew, by another run, and by the cells of another store.
    lab.store.remove_version(first.cell, first.version)
    assert lab.run("report").success
    second = lab.find("report")
    assert second.version != first.version
    assert read_records(second) == read_records(first) and read_report(second) == read_report(first)
    assert second.manifest.data_version == first.manifest.data_version


def test_the_records_are_artefacts_of_the_mlflow_run(looking: Lab) -> None:
    from mlflow.tracking import MlflowClient

    entry = looking.events("report")[-1].asset_materialization
    assert entry
    client = MlflowClient(da.tracking_uri())
    logged = {file.path for file in client.list_artifacts(str(entry.metadata["mlflow_run_id"].value))}
    assert {"report.html", *NAMES} <= logged


@pytest.mark.parametrize(
    "path", sorted((ROOT / "dioptra_assets/defs").glob("*/defs.yaml")), ids=lambda p: p.parent.name
)
def test_the_declared_experiment_is_the_one_that_the_report_gives(path: Path) -> None:
    spec = parse_experiment(path.parent.name, yaml.safe_load(path.read_text())["attributes"])
    if spec.dynamic:
        pytest.skip("it declares no cells and has no report")
    again = yaml.safe_load(yaml.safe_dump(declaration(spec)))
    assert parse_experiment(spec.name, again["attributes"]) == spec
