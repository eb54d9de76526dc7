"""Sanity checks of an experiment, as asset checks that warn or block."""

import dagster as dg
import pandas as pd

from dioptra_assets.assets.cells import CellContext, CellResult, asset_key, cell_asset, every
from dioptra_assets.assets.metric_tables import present_metrics
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.robustness.predictions import predict
from dioptra_assets.robustness.sanity import CHECKS, SanityResult, noisy, sanity_checks
from partitions.configs import edition
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.cells import StoredCell
from resources.compute import prepare_device
from resources.image_store import read_image_set
from resources.models import read_model
from resources.tables import write_table

SANITY_COLUMNS = {
    "check": "what must hold if the attacks work",
    "status": "passed, failed or not applicable",
    "compared": "comparisons made",
    "findings": "what failed, or what has to be declared to compare",
}
SHOWN_FINDINGS = 20


def sanity_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`sanity`: a table with a row a check, and the checks on it."""
    return cell_asset(
        spec,
        "sanity",
        _check,
        description="Whether the attacks behave as attacks that work do. A check that fails says that an attack is"
        " weak, so that the robust accuracies are too high.",
        deps=["adversarial_set", "evasion_metrics", "testing_set", every(spec, "model")],
        kinds={"pandas"},
        columns=SANITY_COLUMNS,
        pool=GPU_POOL,
        params=lambda _: {},
        code_version=edition("1", list(spec.architectures), list(spec.attacks), list(spec.defences)),
        seeded=True,
        checks=[
            dg.AssetCheckSpec(
                name, asset=asset_key(spec, "sanity"), description=description, blocking=spec.sanity == "block"
            )
            for name, description in CHECKS.items()
        ],
    )


def _check(cell: CellContext) -> CellResult:
    metrics, missing = present_metrics(cell)
    testing_set = cell.read("testing_set")
    noise = _noise(cell, metrics, testing_set)
    results = sanity_checks(
        metrics,
        cell.spec.attacks,
        class_count=len(testing_set.manifest.attributes["class_names"]),
        noise=noise,
        zero_gradients=_zero_gradients(cell, metrics),
        defences=cell.spec.defences,
    )
    table = pd.DataFrame(
        [
            {"check": r.name, "status": r.status, "compared": r.compared, "findings": "\n".join(r.findings)}
            for r in results
        ]
    )
    stored = write_table(cell.store, cell.cell, table, attributes={"missing": missing}, **cell.publishing)
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        cell.log(f"{cell.cell}: {result.name} failed: {'; '.join(result.findings[:3])}")
    return CellResult(
        stored,
        {"checks": dg.MetadataValue.md(table.to_markdown(index=False))},
        {"failed": len(failed), "not applicable": sum(r.status == "not applicable" for r in results)},
        checks=[_asset_check(cell.spec, result) for result in results],
    )


def _asset_check(spec: ExperimentSpec, result: SanityResult) -> dg.AssetCheckResult:
    findings = "\n".join(f"- {finding}" for finding in result.findings[:SHOWN_FINDINGS])
    return dg.AssetCheckResult(
        passed=result.status != "failed",
        asset_key=asset_key(spec, "sanity"),
        check_name=result.name,
        severity=dg.AssetCheckSeverity.ERROR if spec.sanity == "block" else dg.AssetCheckSeverity.WARN,
        description=f"{CHECKS[result.name]} {result.status}: {result.compared} comparisons.",
        metadata={"status": result.status, "compared": result.compared}
        | ({"findings": dg.MetadataValue.md(findings)} if findings else {}),
    )


def _noise(cell: CellContext, metrics: pd.DataFrame, testing_set: StoredCell) -> pd.DataFrame:
    """What random noise of the largest size of each norm does to each model."""
    largest: dict[str, float] = {}
    for key in dict.fromkeys(metrics["attack"]):
        config = cell.spec.attacks[key]
        norm, eps = str(getattr(config, "norm", "")), getattr(config, "eps", None)
        if norm in ("inf", "2") and eps is not None:
            largest[norm] = max(largest.get(norm, 0.0), float(eps))
    models, _ = cell.present("model", [{ARCHITECTURE: key} for key in dict.fromkeys(metrics["target"])])
    prepare_device()
    images = read_image_set(testing_set)
    rows = []
    for stored in models:
        for norm, eps in largest.items():
            predictions = predict(read_model(stored), noisy(images, norm=norm, eps=eps, seed=cell.seed))
            rate = float((predictions["prediction"] == predictions["label"]).mean())
            target = stored.cell.partition[ARCHITECTURE]
            rows.append({"target": target, "norm": norm, "eps": eps, "robust_accuracy": rate, "n": len(predictions)})
    return pd.DataFrame(rows, columns=["target", "norm", "eps", "robust_accuracy", "n"])


def _zero_gradients(cell: CellContext, metrics: pd.DataFrame) -> dict[tuple[str, str], float]:
    attacks = [
        key
        for key in dict.fromkeys(metrics["attack"])
        if cell.spec.attacks[key].threat_model().knowledge == "white-box"
    ]
    sources = dict.fromkeys(metrics["source"])
    stored, _ = cell.present("adversarial_set", [{ARCHITECTURE: s, ATTACK: key} for key in attacks for s in sources])
    return {
        (one.cell.partition[ARCHITECTURE], one.cell.partition[ATTACK]): float(
            read_image_set(one).index["zero_gradient"].mean()
        )
        for one in stored
    }
