"""Sanity checks: of each model alone, which gates go by, and of the experiment; as asset checks that warn or block."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, asset_key
from dioptra_assets.assets.check_events import partitioned_check
from dioptra_assets.assets.metric_tables import present_metrics
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.evaluation.comparison import compare_rates
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.evaluation.reference_attack import LOSSES, ReferenceAttacks, allowed_gap, has_reference
from dioptra_assets.robustness.evaluation.sanity import (
    CHECKS,
    MODEL_SANITY_COLUMNS,
    NOISE_COLUMNS,
    REFERENCE_COLUMNS,
    TRANSFERRED,
    SanityResult,
    comparisons,
    model_sanity_table,
    noisy,
    sanity_result,
)
from dioptra_assets.robustness.image_set import ImageSet
from partitions.attacks import attack_of
from partitions.definitions import partitions_of
from partitions.entries import edition
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set, read_often
from resources.models import read_model
from resources.store import StoredCell
from resources.tables import read_table, read_tables, write_table

MODEL_SANITY = "model_sanity"
SANITY_COLUMNS = {
    "check": "what must hold if the attacks work",
    "status": "passed, failed or not applicable",
    "compared": "comparisons made",
    "findings": "what failed, or what has to be declared to compare",
}
SHOWN_FINDINGS = 20


def model_sanity_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`model_sanity`, by architecture: a table with a row a check and attack, and the checks on it.

    It never blocks: what must not be concluded from such numbers is up to the gates, the experiment's `sanity` and the
    report.
    """
    behind = [f"adaptive_set/{name}" for name in spec.defences]
    return cell_asset(
        spec,
        MODEL_SANITY,
        _check_model,
        description="Whether the attacks on one model behave as working attacks do, as far as one model alone can show."
        " If a check fails, the attack is weak, its robust accuracy is too high, and no gate passes on it.",
        dimensions=(ARCHITECTURE,),
        deps=["adversarial_set", "evasion_examples", "evasion_metrics", "model", "testing_set", *behind],
        kinds={"pandas"},
        columns=MODEL_SANITY_COLUMNS,
        pool=GPU_POOL,
        code_version=edition("1", list(spec.attacks), list(spec.defences)),
        seeded=True,
        reusable={"model": (ARCHITECTURE,), "testing_set": (), "adversarial_set": (ARCHITECTURE, ATTACK)},
        checks=[
            partitioned_check(
                name,
                asset=asset_key(spec, MODEL_SANITY),
                description=description,
                partitions_def=partitions_of(spec, (ARCHITECTURE,)),
            )
            for name, description in CHECKS.items()
            if name != TRANSFERRED
        ],
    )


def sanity_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`sanity`: a table with a row a check, and the checks on it."""
    return cell_asset(
        spec,
        "sanity",
        _check,
        description="Whether the attacks behave as working attacks do, over all models. If a check fails, an attack is"
        " weak and the robust accuracies are too high.",
        deps=["evasion_metrics", MODEL_SANITY, "testing_set"],
        kinds={"pandas"},
        columns=SANITY_COLUMNS,
        params=lambda _: {},
        code_version=edition("2", list(spec.architectures), list(spec.attacks), list(spec.defences)),
        checks=[
            dg.AssetCheckSpec(
                name, asset=asset_key(spec, "sanity"), description=description, blocking=spec.sanity == "block"
            )
            for name, description in CHECKS.items()
        ],
    )


def _check_model(cell: CellContext) -> CellResult:
    architecture = cell.cell.partition[ARCHITECTURE]
    partitions = [{ARCHITECTURE: architecture, ATTACK: attack} for attack in cell.spec.attacks]
    stored, missing = cell.present("evasion_metrics", partitions)
    if not stored:
        raise LookupError(f"{cell.cell}: no cell of evasion_metrics of {architecture} has been materialized yet")
    looked_at = {one.cell.partition[ATTACK]: one.manifest.data_version for one in stored}
    rows = _of_twin(cell, cell.twin, looked_at) if cell.twin else _looked_at(cell, stored, looked_at)
    facts = {"missing": missing, **cell.facts}
    stored_table = write_table(cell.destination, rows, attributes=facts)
    results = summed(rows, [name for name in CHECKS if name != TRANSFERRED])
    return _result(cell, MODEL_SANITY, stored_table, results, dg.AssetCheckSeverity.WARN)


def _of_twin(cell: CellContext, twin: StoredCell, looked_at: Mapping[str, str]) -> pd.DataFrame:
    """The rows of the same bytes under another version, under the name of this one."""
    rows, name = read_table(twin), re.compile(rf"{re.escape(twin.cell.partition[ARCHITECTURE])}(?!\d)")
    own = cell.cell.partition[ARCHITECTURE]
    return rows.assign(
        looked_at=[looked_at.get(attack, "") for attack in rows["attack"]],
        findings=[name.sub(lambda _: own, findings) for findings in rows["findings"]],
    )


def _looked_at(cell: CellContext, stored: Sequence[StoredCell], looked_at: Mapping[str, str]) -> pd.DataFrame:
    """Rows of `MODEL_SANITY_COLUMNS` on the metric tables of a model."""
    architecture, table = cell.cell.partition[ARCHITECTURE], read_tables(stored)
    metrics = table[(table["source"] == architecture) & (table["target"] == architecture)]
    testing_set = read_often(cell.read("testing_set"))
    prepare_device()
    model = read_model(cell.read("model", **cell.cell.partition))
    attacks = _attacks(cell, [one.cell.partition[ATTACK] for one in stored])
    made = comparisons(
        metrics,
        attacks,
        class_count=len(testing_set.class_names),
        noise=_noise(cell, attacks, model, testing_set),
        zero_gradients=_zero_gradients(cell, attacks),
        references=_references(cell, attacks, model, testing_set),
        defences=cell.spec.defences,
    )
    return model_sanity_table(made, looked_at)


def _check(cell: CellContext) -> CellResult:
    metrics, missing = present_metrics(cell)
    classes = len(cell.read("testing_set").manifest.attributes["class_names"])
    partitions = [{ARCHITECTURE: architecture} for architecture in cell.spec.architectures]
    stored, absent = cell.present(MODEL_SANITY, partitions)
    if not stored:
        raise LookupError(f"{cell.cell}: no cell of {cell.spec.name}/{MODEL_SANITY} has been materialized yet")
    nothing = pd.DataFrame(columns=NOISE_COLUMNS)
    made = comparisons(metrics, cell.spec.attacks, class_count=classes, noise=nothing, zero_gradients={})[TRANSFERRED]
    of_models = {result.name: result for result in summed(read_tables(stored), CHECKS)}
    of_models[TRANSFERRED] = sanity_result(TRANSFERRED, len(made), (one.finding for one in made if one.finding))
    results = [of_models[name] for name in CHECKS]
    table = sanity_table(results)
    stored_table = write_table(cell.destination, table, attributes={"missing": missing + absent})
    severity = dg.AssetCheckSeverity.ERROR if cell.spec.sanity == "block" else dg.AssetCheckSeverity.WARN
    return _result(cell, "sanity", stored_table, results, severity)


def sanity_table(results: Iterable[SanityResult]) -> pd.DataFrame:
    """Rows of `SANITY_COLUMNS`."""
    rows = [(r.name, r.status, r.compared, "\n".join(r.findings)) for r in results]
    return pd.DataFrame(rows, columns=[*SANITY_COLUMNS])


def summed(rows: pd.DataFrame, checks: Iterable[str]) -> list[SanityResult]:
    """One result a check from the rows of `model_sanity` of one model or several."""
    results = []
    for name in checks:
        own = rows[rows["check"] == name]
        findings = dict.fromkeys(line for text in own["findings"] for line in text.splitlines())
        results.append(sanity_result(name, int(own["compared"].sum()), findings))
    return results


def _result(
    cell: CellContext,
    asset: str,
    stored: StoredCell,
    results: list[SanityResult],
    severity: dg.AssetCheckSeverity,
) -> CellResult:
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        cell.log(f"{cell.cell}: {result.name} failed: {'; '.join(result.findings[:3])}")
    return CellResult(
        stored,
        {"checks": dg.MetadataValue.md(sanity_table(results).to_markdown(index=False))},
        {"failed": len(failed), "not applicable": sum(r.status == "not applicable" for r in results)},
        checks=[_asset_check(cell.spec, asset, result, severity) for result in results],
    )


def _asset_check(
    spec: ExperimentSpec, asset: str, result: SanityResult, severity: dg.AssetCheckSeverity
) -> dg.AssetCheckResult:
    findings = "\n".join(f"- {finding}" for finding in result.findings[:SHOWN_FINDINGS])
    return dg.AssetCheckResult(
        passed=result.status != "failed",
        asset_key=asset_key(spec, asset),
        check_name=result.name,
        severity=severity,
        description=f"{CHECKS[result.name]} {result.status}: {result.compared} comparisons.",
        metadata={"status": result.status, "compared": result.compared}
        | ({"findings": dg.MetadataValue.md(findings)} if findings else {}),
    )


def _attacks(cell: CellContext, keys: Iterable[str]) -> dict[str, Attack]:
    """The attacks by key, as they were when the adversarial sets were made: the file may say something else by now."""
    partitions = [{**cell.cell.partition, ATTACK: key} for key in keys]
    sets, _ = cell.present("adversarial_set", partitions)
    made = {one.cell.partition[ATTACK]: attack_of(one.manifest.attributes["attack"]) for one in sets}
    return {key: made.get(key, cell.spec.attacks[key]) for key in (partition[ATTACK] for partition in partitions)}


def _noise(cell: CellContext, attacks: Mapping[str, Attack], model: Any, images: ImageSet) -> pd.DataFrame:
    """What random noise of the largest size of each norm does to a model."""
    largest: dict[str, float] = {}
    for config in attacks.values():
        norm, eps = str(getattr(config, "norm", "")), getattr(config, "eps", None)
        if norm in ("inf", "2") and eps is not None:
            largest[norm] = max(largest.get(norm, 0.0), float(eps))
    rows = []
    for norm, eps in largest.items():
        predictions = predict(model, noisy(images, norm=norm, eps=eps, seed=cell.seed))
        rate = float((predictions["prediction"] == predictions["label"]).mean())
        rows.append((cell.cell.partition[ARCHITECTURE], norm, eps, rate, len(predictions)))
    return pd.DataFrame(rows, columns=NOISE_COLUMNS)


def _zero_gradients(cell: CellContext, attacks: Mapping[str, Attack]) -> dict[tuple[str, str, str], float]:
    """(architecture, attack, defence) -> share of the images that a white-box attack found no gradient at."""
    architecture = cell.cell.partition[ARCHITECTURE]
    white_box = [key for key, attack in attacks.items() if attack.threat_model().knowledge == "white-box"]
    partitions = [{ARCHITECTURE: architecture, ATTACK: key} for key in white_box]
    sets = {NO_DEFENCE: "adversarial_set", **{name: f"adaptive_set/{name}" for name in cell.spec.defences}}
    return {
        (architecture, one.cell.partition[ATTACK], defence): float(read_image_set(one).index["zero_gradient"].mean())
        for defence, asset in sets.items()
        for one in cell.present(asset, partitions)[0]
    }


def _references(cell: CellContext, attacks: Mapping[str, Attack], model: Any, images: ImageSet) -> pd.DataFrame:
    """Each attack on a model, and the same with a loss that the scale of the logits cannot hide, image by image."""
    architecture = cell.cell.partition[ARCHITECTURE]
    reference = ReferenceAttacks(model, images, seed=cell.seed)
    rows = []
    for key, attack in attacks.items():
        if not has_reference(attack):
            continue
        right = reference.right(attack).set_index("image_id")
        first = own_right(read_table(cell.read("evasion_examples", **{ARCHITECTURE: architecture, ATTACK: key})))
        for loss in LOSSES:
            pairs = pd.DataFrame({"first_right": first.loc[right.index], "second_right": right[loss]})
            compared: Mapping[str, Any] = compare_rates(key, pairs)
            facts = {"attacked": compared["first"], "reference": compared["second"], "n": compared["n"]}
            facts |= {"low": compared["low"], "allowed": allowed_gap(attack, loss)}
            rows.append({"source": architecture, "attack": key, "loss": loss, **facts})
    return pd.DataFrame(rows, columns=REFERENCE_COLUMNS)


def own_right(examples: pd.DataFrame) -> pd.Series:
    """Whether the attacked model itself, without a defence, is still right about each image: bool, by image id."""
    own: Any = examples[(examples["source"] == examples["target"]) & (examples["defence"] == NO_DEFENCE)]
    return (own["adversarial_prediction"] == own["label"]).set_axis(own["image_id"])
