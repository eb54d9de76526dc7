"""Defences, backdoors, model inversion and sanity checks, from one small experiment's stored cells."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import mlcroissant as mlc
import numpy as np
import pandas as pd
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from dioptra_assets.assets import sanity
from dioptra_assets.assets.inverted_sets import INVERSION_METRIC_COLUMNS
from dioptra_assets.assets.poisoned_sets import MANIFEST_COLUMNS
from dioptra_assets.assets.report.asset import COMPARISON_COLUMNS
from dioptra_assets.records.model_card import SPECIMEN
from dioptra_assets.robustness.defences import defended, split_before_copies
from dioptra_assets.robustness.defences.base import COPY_SUFFIX
from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS, set_distances
from dioptra_assets.robustness.evaluation.sanity import CHECKS, SanityResult
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.loop import split_rows
from dioptra_assets.runs.launch import Launched
from partitions.attacks import attack_document
from partitions.experiments import parse_experiment
from resources.documents import read_records, read_report
from resources.image_store import read_image_set
from resources.tables import read_table
from tests.conftest import Lab, enter, skeleton

ATTACKS = ("fgm", "pgd")
DEFENCES = ("smoothing", "noise")
TARGET = 3
FULL: dict[str, Any] = {
    "description": "Everything but the kitchen sink.",
    "seed": 7,
    "data": {"source": "digits", "image_size": [8, 8], "test_fraction": 0.1},
    "architectures": {"shallow_net": {"epochs": 8, "learning_rate": 0.003}},
    "attacks": {"fgm": {"eps": 0.3}, "pgd": {"eps": 0.3, "eps_step": 0.1, "steps": 3}},
    "defences": {
        "smoothing": {"method": "spatial_smoothing", "window_size": 3},
        "noise": {
            "method": "gaussian_augmentation",
            "sigma": 0.1,
            "apply_fit": True,
            "perform_data_augmentation": True,
            "ratio": 0.5,
        },
    },
    "eot_samples": 2,
    "poisonings": {
        "baseline": {"target_class": TARGET, "poison_fraction": 0.3},
        "clean_label": {"target_class": TARGET, "poison_fraction": 0.5, "steps": 3, "eps": 1.0, "eps_step": 0.5},
    },
    "inversions": {"miface": {"max_iter": 50}},
}
SPEC = parse_experiment("tiny", FULL)
# Sets, configs of 1 + 2 + 2 + 1 entries, model, predictions, three tables of attacks each on one model, sanity of the
# model and of the experiment, ...
PLAIN = 2 + 6 + 2 + 3 * 2 + 2
# ... a defence: testing set, 2 adversarial, 2 triggered, predictions, 2 adaptive; noise has training set and model too.
BEHIND = 2 * (1 + 2 + 2 + 1 + 2) + 2
# ... poisoned set, manifest, triggered set, model, examples and metrics of each poisoning, curve; inverted set, scores;
# transfer matrix, curves, defence comparison, report.
CELLS = PLAIN + BEHIND + 6 * 2 + 1 + 2 + 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Launched]]:
    """The experiment, materialized once for this file. Look, do not touch."""
    lab = skeleton(tmp_path_factory.mktemp("full"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(monkeypatch, lab)
        lab.write(FULL)
        launched = lab.materialize()
        assert not launched.failed and not launched.skipped, launched
        yield lab, launched


@pytest.fixture
def full(made: tuple[Lab, Launched], monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The materialized experiment as this process's home, not to be changed."""
    enter(monkeypatch, made[0])
    return made[0]


@pytest.fixture
def editable(made: tuple[Lab, Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A copy of the materialized experiment, to be edited and run."""
    copy = skeleton(tmp_path / "project")
    shutil.copytree(made[0].home, copy.home, dirs_exist_ok=True)
    copy.write(FULL)
    enter(monkeypatch, copy)
    return copy


def table(lab: Lab, asset: str, **partition: str) -> pd.DataFrame:
    return read_table(lab.find(asset, **partition))


def images(lab: Lab, asset: str, **partition: str) -> ImageSet:
    return read_image_set(lab.find(asset, **partition))


def pixels(image_set: ImageSet) -> np.ndarray:
    return image_set.to_numpy()[0]


def of(attack: str) -> dict[str, str]:
    return {"architecture": "shallow_net", "attack": attack}


def edited(section: str, entry: str, **parameters: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(FULL))
    changed[section][entry] |= parameters
    return changed


def stale(lab: Lab) -> set[str]:
    statuses = lab.statuses()
    assert set(statuses.values()) <= {"FRESH", "STALE"}
    return {path for path, status in statuses.items() if status == "STALE"}


def evaluation_of(lab: Lab, check: str) -> dg.AssetCheckEvaluation:
    """The last result of a sanity check that Dagster keeps."""
    key = dg.AssetCheckKey(dg.AssetKey(["tiny", "sanity"]), check)
    with lab.instance() as instance:
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert found.event and found.event.dagster_event
    return found.event.dagster_event.asset_check_evaluation_data


def test_every_cell_was_computed_once_and_a_second_launch_computes_nothing(
    made: tuple[Lab, Launched], full: Lab
) -> None:
    assert len({cell.path for cell in made[1].computed}) == len(made[1].computed) == CELLS
    again = full.materialize()
    assert (again.computed, again.failed, again.skipped, again.fresh) == ([], {}, [], CELLS)


@pytest.mark.parametrize("attack", ATTACKS)
def test_examples_hold_each_defence_oblivious_and_adaptive_and_no_adaptive_row_without_one(
    full: Lab, attack: str
) -> None:
    examples = table(full, "evasion_examples", **of(attack))
    n = len(images(full, "testing_set"))
    counts = examples.groupby(["defence", "adaptive"]).size().to_dict()
    assert counts == {("none", False): n} | {(name, known): n for name in DEFENCES for known in (False, True)}
    for _, rows in examples.groupby(["defence", "adaptive"]):
        assert set(rows["image_id"]) == set(images(full, "testing_set").index["image_id"])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", DEFENCES)
def test_distances_are_those_of_the_images_that_the_attacker_handed_over(full: Lab, attack: str, name: str) -> None:
    examples = table(full, "evasion_examples", **of(attack))
    examples = examples[examples["defence"] == name]
    clean = images(full, "testing_set")
    adaptive = images(full, f"adaptive_set/{name}", **of(attack))
    oblivious = images(full, "adversarial_set", **of(attack))
    assert not np.array_equal(pixels(adaptive), pixels(oblivious))
    for known, handed_over in ((True, adaptive), (False, oblivious)):
        rows = examples[examples["adaptive"] == known].set_index("image_id")
        expected = set_distances(clean, handed_over).set_index("image_id").loc[rows.index]
        for distance in DISTANCE_COLUMNS:
            np.testing.assert_allclose(rows[distance], expected[distance], rtol=1e-6, err_msg=distance)
        assert rows["linf"].max() <= 0.3 + 1e-6


def test_a_defended_set_is_the_defence_of_each_image_in_its_place(full: Lab) -> None:
    pairs = [("defended_testing_set", "testing_set", {})]
    pairs += [("defended_set", "adversarial_set", of(attack)) for attack in ATTACKS]
    pairs += [("defended_triggered_set", "triggered_testing_set", {"attack": key}) for key in FULL["poisonings"]]
    for name in DEFENCES:
        for asset, source, partition in pairs:
            stored = full.find(f"{asset}/{name}", **partition)
            before, after = images(full, source, **partition), read_image_set(stored)
            expected = pixels(defended(SPEC.defences[name], before, seed=stored.manifest.attributes["seed"]))
            np.testing.assert_array_equal(pixels(after), expected)
            assert not np.array_equal(expected, pixels(before)), "something was done"
            assert list(after.index["image_id"]) == list(before.index["image_id"])
            assert list(after.index["label"]) == list(before.index["label"])
            assert stored.manifest.attributes["defence"] == attack_document(SPEC.defences[name])


def test_a_defended_training_set_keeps_its_images_and_adds_noisy_copies(full: Lab) -> None:
    clean, defended_set = images(full, "training_set"), images(full, "defended_training_set/noise")
    n = len(clean)
    copies = defended_set.index.iloc[n:]
    assert len(copies) == round(0.5 * n)
    np.testing.assert_array_equal(pixels(defended_set)[:n], pixels(clean))
    originals = copies["image_id"].str.removesuffix(COPY_SUFFIX)
    assert originals.is_unique and set(originals) <= set(clean.index["image_id"])
    rows = pd.Index(clean.index["image_id"]).get_indexer(pd.Index(originals))
    assert list(clean.labels[rows]) == list(copies["label"])
    assert (np.abs(pixels(defended_set)[n:] - pixels(clean)[rows]).max(axis=(1, 2, 3)) > 0).all()


def test_no_copy_of_a_held_out_image_is_trained_on(full: Lab) -> None:
    model = full.find("defended_model/noise", architecture="shallow_net")
    recipe = SPEC.architectures["shallow_net"]
    assert recipe.validation_split > 0
    defended_set = images(full, "defended_training_set/noise")
    split = split_before_copies(defended_set, recipe.validation_split, model.manifest.attributes["seed"])
    training, validation = split_rows(split, recipe.validation_split, seed=123)
    ids = split.index["image_id"]
    held_out = set(ids.iloc[validation])
    assert held_out and not any(name.endswith(COPY_SUFFIX) for name in held_out)
    trained = set(ids.iloc[training].str.removesuffix(COPY_SUFFIX))
    assert trained.isdisjoint(held_out)
    assert any(name.endswith(COPY_SUFFIX) for name in ids.iloc[training])
    left_out = ids[split.index["split"] == "left out"]
    assert len(left_out) and set(left_out.str.removesuffix(COPY_SUFFIX)) <= held_out
    facts = model.manifest.attributes
    assert (facts["training_images"], facts["validation_images"]) == (len(training), len(validation))
    assert len(training) + len(validation) + len(left_out) == len(defended_set)


@pytest.mark.parametrize("key", FULL["poisonings"])
def test_a_manifest_agrees_with_its_poisoned_set_and_poisons_what_may_be_poisoned(full: Lab, key: str) -> None:
    stored = full.find("poisoned_training_set", attack=key)
    config, poisoned, clean = SPEC.poisonings[key], read_image_set(stored), images(full, "training_set")
    manifest = table(full, "poison_manifest", attack=key)
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    rows = manifest["row"].to_numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(poisoned.index["poisoned"]))
    assert list(poisoned.index["image_id"]) == list(clean.index["image_id"])
    assert list(manifest["image_id"]) == list(clean.index["image_id"].iloc[rows])
    np.testing.assert_array_equal(manifest["old_label"], clean.labels[rows])
    np.testing.assert_array_equal(manifest["new_label"], poisoned.labels[rows])
    assert (manifest["new_label"] == TARGET).all()
    assert (manifest["old_label"] == TARGET).all() == (key == "clean_label")

    training, validation = split_rows(clean, config.validation_split, stored.manifest.attributes["seed"])
    assert set(rows) <= set(training), "what is held out is clean"
    assert config.eligible(clean.labels[rows]).all()
    assert len(rows) == round(config.poison_fraction * int(config.eligible(clean.labels[training]).sum())) > 0
    others = np.setdiff1d(np.arange(len(clean)), rows)
    np.testing.assert_array_equal(pixels(poisoned)[others], pixels(clean)[others])
    np.testing.assert_array_equal(poisoned.labels[others], clean.labels[others])
    stamped = config.trigger.mask(clean.image_shape)
    assert (pixels(poisoned)[rows][:, stamped] == config.trigger.value).all()
    model = full.find("poisoned_model", **of(key)).manifest.attributes
    assert (model["training_images"], model["validation_images"]) == (len(training), len(validation))


def test_a_clean_label_backdoor_says_which_model_helped(full: Lab) -> None:
    facts = full.find("poisoned_training_set", attack="clean_label").manifest.attributes
    assert facts["proxy_architecture"] == "shallow_net"
    assert facts["proxy_version"] == full.find("model", architecture="shallow_net").manifest.data_version


@pytest.mark.parametrize("key", FULL["poisonings"])
def test_a_triggered_set_is_the_testing_set_with_the_trigger_under_its_true_labels(full: Lab, key: str) -> None:
    clean, triggered = images(full, "testing_set"), images(full, "triggered_testing_set", attack=key)
    trigger = SPEC.poisonings[key].trigger
    np.testing.assert_array_equal(triggered.labels, clean.labels)
    np.testing.assert_array_equal(pixels(triggered), trigger.stamp(pixels(clean)))
    np.testing.assert_array_equal(triggered.index["eligible"], clean.labels != TARGET)


def test_columns_of_every_family_are_shown_with_the_types_that_tables_have(full: Lab) -> None:
    wrong, compared = full.columns_of_another_type()
    assert wrong == []
    assert compared > 200


def test_an_asset_of_a_defence_says_in_the_lineage_what_it_is(full: Lab) -> None:
    graph = full.defs().resolve_asset_graph()
    behind = [key for key in graph.get_all_asset_keys() if len(key.path) == 3]
    assert len(behind) > 5
    for key in behind:
        assert key.path[1] in graph.get(key).kinds, "the last part is all that a node of the lineage reads otherwise"


def test_the_testing_set_was_written_once(full: Lab) -> None:
    assert len(full.events("testing_set")) == len(full.events("training_set")) == 1


@pytest.mark.parametrize("key", FULL["poisonings"])
def test_poisoning_rates_are_those_of_the_rows_for_every_model_and_defence(full: Lab, key: str) -> None:
    examples, metrics = (table(full, f"poisoning_{what}", **of(key)) for what in ("examples", "metrics"))
    expected = {(kind, name) for kind in ("poisoned", "clean control") for name in ("none", *DEFENCES)}
    assert {(row["model_kind"], row["defence"]) for _, row in metrics.iterrows()} == expected
    assert len(metrics) == len(expected)
    for _, row in metrics.iterrows():
        rows = examples[(examples["model_kind"] == row["model_kind"]) & (examples["defence"] == row["defence"])]
        others = rows[rows["label"] != TARGET]
        assert (row["n"], row["asr_n"]) == (len(rows), len(others))
        assert row["asr"] == pytest.approx((others["triggered_prediction"] == TARGET).mean())
        assert row["ra"] == pytest.approx((others["triggered_prediction"] == others["label"]).mean())
        assert row["clean_accuracy"] == pytest.approx((rows["clean_prediction"] == rows["label"]).mean())
        for rate in ("asr", "ra", "clean_accuracy"):
            assert row[f"{rate}_low"] <= row[rate] <= row[f"{rate}_high"]


def test_a_backdoor_with_relabelled_poisons_works_and_its_control_has_none(full: Lab) -> None:
    metrics = table(full, "poisoning_metrics", **of("baseline"))
    asr = metrics[metrics["defence"] == "none"].set_index("model_kind")["asr"].to_dict()
    assert asr["poisoned"] > asr["clean control"] + 0.3


def test_a_poison_curve_begins_at_the_clean_control(full: Lab) -> None:
    curve = table(full, "poison_curve")
    assert {family: list(line["poison_fraction"]) for family, line in curve.groupby("family")} == {
        "baseline": [0, 0.3],
        "clean_label": [0, 0.5],
    }


def test_an_inverted_set_has_one_picture_a_class_with_its_scores(full: Lab) -> None:
    inverted, scores = images(full, "inverted_set", **of("miface")), table(full, "inversion_metrics", **of("miface"))
    assert list(inverted.labels) == list(range(10))
    assert pixels(inverted).min() >= 0 and pixels(inverted).max() <= 1
    assert list(scores.columns) == list(INVERSION_METRIC_COLUMNS), "there is no other model"
    assert list(scores["label"]) == list(range(10))
    np.testing.assert_allclose(scores["confidence"], inverted.index["confidence"], atol=1e-4)
    training_set = images(full, "training_set")
    seen = pixels(training_set)
    means = np.stack([seen[training_set.labels == k].mean(axis=0) for k in range(10)])
    expected = np.sqrt(((pixels(inverted) - means) ** 2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(scores["l2_to_class_mean"], expected, rtol=1e-4)
    assert (scores["iterations"] <= 50).all()


def test_a_defence_is_compared_without_it_oblivious_and_adaptive(full: Lab) -> None:
    comparison = table(full, "defence_comparison")
    assert set(COMPARISON_COLUMNS) <= set(comparison.columns)
    assert len(comparison) == len(ATTACKS) * len(DEFENCES)
    for _, row in comparison.iterrows():
        metrics = table(full, "evasion_metrics", **of(row["attack"]))
        rate = metrics.set_index(["defence", "adaptive"])["robust_accuracy"]
        assert row["robust_accuracy"] == rate["none", False]
        assert row["oblivious"] == rate[row["defence"], False]
        assert row["adaptive"] == rate[row["defence"], True]


def test_the_report_has_a_section_for_each_part_and_names_no_missing_cell(full: Lab) -> None:
    page = read_report(full.find("report"))
    for title in ("Sanity checks", "Defences", "Backdoors", "Model inversion"):
        assert f">{title}</h2>" in page, title
    for key in (*ATTACKS, *FULL["poisonings"], *FULL["inversions"], *DEFENCES, *CHECKS):
        assert key in page, key
    entry = full.events("report")[-1].asset_materialization
    assert entry and "missing cells" not in entry.metadata


def test_records_beside_the_report_hold_every_set_and_every_model(full: Lab) -> None:
    records = read_records(full.find("report"))
    bill, sets = records["tiny.model_card.cdx.json"].decode(), json.loads(records["tiny.croissant.json"])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    mlc.Dataset(sets)  # raises where it is no Croissant record
    stored = [full.store.open(cell) for cell in full.store.cells("tiny")]
    of_kind = {kind: {s.cell.path for s in stored if s.manifest.kind == kind} for kind in ("image_set", "model")}
    assert {one["@id"] for one in sets["recordSet"]} == of_kind["image_set"] | {"classes"}
    models = {part["bom-ref"]: part for part in json.loads(bill)["components"] if "modelCard" in part}
    assert set(models) == of_kind["model"]
    rates = {ref: part["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] for ref, part in models.items()}
    slices = {ref: {metric["slice"].partition(";")[0] for metric in metrics} for ref, metrics in rates.items()}
    behind = "behind {} ({}: the attack {} it)"
    assert {f"{key} made on shallow_net (white-box)" for key in ATTACKS} <= slices["tiny/model/shallow_net"]
    for ref, defence in (("tiny/model/shallow_net", "smoothing"), ("tiny/defended_model/noise/shallow_net", "noise")):
        for knowing, verb in (("oblivious", "does not know"), ("adaptive", "knows")):
            told = behind.format(defence, knowing, verb)
            assert {f"{key} made on shallow_net (white-box), {told}" for key in ATTACKS} <= slices[ref]
    for key in FULL["poisonings"]:
        part = models[f"tiny/poisoned_model/shallow_net/{key}"]["modelCard"]
        assert part["modelParameters"]["datasets"][0] == {"ref": f"tiny/poisoned_training_set/{key}"}
        assert SPECIMEN in part["considerations"]["technicalLimitations"]
        [asr] = [
            metric
            for metric in part["quantitativeAnalysis"]["performanceMetrics"]
            if metric["type"] == "attack success rate" and "behind" not in metric["slice"]
        ]
        metrics = table(full, "poisoning_metrics", **of(key))
        own = metrics[(metrics["model_kind"] == "poisoned") & (metrics["defence"] == "none")]
        assert asr["value"] == f"{own['asr'].iloc[0]:.6g}"


def test_sanity_has_a_row_a_check_and_dagster_has_an_evaluation_of_each(full: Lab) -> None:
    rows = table(full, "sanity")
    assert list(rows["check"]) == list(CHECKS)
    compared = rows.set_index("check")["compared"]
    assert compared["defences_are_judged_adaptive"] == len(ATTACKS) * len(DEFENCES)
    assert compared["gradients_are_there"] == len(ATTACKS) * (1 + len(DEFENCES))
    assert compared["the_loss_hides_nothing"] == len(ATTACKS) * 2
    assert compared["noise_is_weaker"] == len(ATTACKS)
    for _, row in rows.iterrows():
        evaluation = evaluation_of(full, row["check"])
        assert evaluation.passed == (row["status"] != "failed"), row["check"]
        assert evaluation.severity == dg.AssetCheckSeverity.WARN


def test_editing_one_defence_makes_what_stands_behind_it_stale_and_nothing_else(editable: Lab) -> None:
    editable.write(edited("defences", "smoothing", window_size=5))
    expected = {"tiny/defended_testing_set/smoothing"}
    expected |= {f"tiny/defended_triggered_set/smoothing/{key}" for key in FULL["poisonings"]}
    expected |= {
        f"tiny/{asset}/smoothing/shallow_net/{a}" for a in ATTACKS for asset in ("defended_set", "adaptive_set")
    }
    # Tables over all defences, and the page that says what was declared, are coded by the declarations.
    expected |= {"tiny/report", *(f"tiny/evasion_examples/shallow_net/{a}" for a in ATTACKS)}
    assert stale(editable) == expected


def test_another_number_of_draws_makes_the_adaptive_sets_stale(editable: Lab) -> None:
    editable.write({**FULL, "eot_samples": 3})
    adaptive = {f"tiny/adaptive_set/{name}/shallow_net/{a}" for name in DEFENCES for a in ATTACKS}
    assert stale(editable) == {*adaptive, "tiny/report"}


def test_editing_one_poisoning_makes_exactly_its_cells_stale(editable: Lab) -> None:
    editable.write(edited("poisonings", "baseline", poison_fraction=0.2))
    configs = {f"tiny/poisoning_config/{key}" for key in FULL["poisonings"]}
    assert stale(editable) == {*configs, "tiny/report"}, "the file was edited"

    assert editable.run("poisoning_config", *FULL["poisonings"]).success

    assert stale(editable) == {
        "tiny/poisoned_training_set/baseline",
        "tiny/triggered_testing_set/baseline",
        "tiny/poisoned_model/shallow_net/baseline",
        "tiny/poisoning_examples/shallow_net/baseline",
        "tiny/report",
    }


def test_editing_one_inversion_makes_exactly_its_cells_stale(editable: Lab) -> None:
    editable.write(edited("inversions", "miface", max_iter=20))
    assert editable.run("inversion_config", "miface").success
    assert stale(editable) == {"tiny/inverted_set/shallow_net/miface", "tiny/report"}


def test_a_failed_check_blocks_the_report_until_it_is_but_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "noise_is_weaker"

    def one_fails(_: Any, checks: Iterable[str]) -> list[SanityResult]:
        return [
            SanityResult(name, "failed" if name == broken else "passed", 1, ("fgm does nothing",) * (name == broken))
            for name in checks
        ]

    monkeypatch.setattr(sanity, "summed", one_fails)
    lab = skeleton(tmp_path / "project")
    enter(monkeypatch, lab)
    small: dict[str, Any] = {name: FULL[name] for name in ("seed", "data")}
    small |= {"architectures": {"shallow_net": {"epochs": 1}}, "attacks": {"fgm": {"eps": 0.3}}}
    lab.write({**small, "sanity": "block"})

    blocked = lab.materialize()

    assert {cell.path for cell in blocked.failed} == {"tiny/sanity"}
    assert {cell.path for cell in blocked.skipped} == {"tiny/report"}
    assert lab.events("sanity") == lab.events("report") == []
    assert lab.find("report") is None
    with lab.instance() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        steps = [
            entry.dagster_event for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
    (reason,) = [step.step_failure_data.user_failure_data.description for step in steps if step]  # type: ignore[union-attr]
    assert reason and reason.startswith("tiny/sanity: blocking checks failed: ") and CHECKS[broken] in reason
    assert evaluation_of(lab, broken).severity == dg.AssetCheckSeverity.ERROR
    assert not evaluation_of(lab, broken).passed

    lab.write({**small, "sanity": "warn"})
    warned = lab.materialize()

    assert {cell.path for cell in warned.computed} == {"tiny/sanity", "tiny/report"}
    assert not warned.failed and not warned.skipped
    assert evaluation_of(lab, broken).severity == dg.AssetCheckSeverity.WARN
    assert not evaluation_of(lab, broken).passed
    assert "fgm does nothing" in read_report(lab.find("report"))
