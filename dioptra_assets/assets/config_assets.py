"""The entries of an experiment file as assets, so that editing one entry makes exactly its cells stale."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.attacks import Family, attack_document, attack_of
from partitions.entries import config_hash
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.documents import read_config, write_config
from resources.store import command_for

ARCHITECTURE_CONFIG = "architecture_config"
ATTACK_CONFIG = "attack_config"
POISONING_CONFIG = "poisoning_config"
INVERSION_CONFIG = "inversion_config"
CONFIGS: dict[Family, tuple[str, str]] = {
    "evasion": (ATTACK_CONFIG, "How each evasion attack is run, and its budget"),
    "poisoning": (POISONING_CONFIG, "How each backdoor is planted"),
    "inversion": (INVERSION_CONFIG, "How each model inversion is run"),
}


class ConfigChangedError(RuntimeError):
    """An experiment file differs from the config that was materialized."""


def config_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`architecture_config`, and one such asset per family of attacks. A cell's version is the hash of its entry."""

    def config(
        name: str, dimension: str, configs: Mapping[str, BaseModel], what: str, family: Family = "evasion"
    ) -> dg.AssetsDefinition:
        def compute(cell: CellContext) -> CellResult:
            return publish_config(cell, attack_document(configs[cell.cell.partition[dimension]]))

        return cell_asset(
            spec,
            name,
            compute,
            description=f"{what}, as declared in the experiment file. Materialize it after editing the file: then only"
            " its cells downstream become stale.",
            dimensions=(dimension,),
            family=family,
            kinds={"yaml"},
            # The entries themselves are the code: the UI marks what was edited and not yet materialized.
            code_version=config_hash({key: attack_document(entry) for key, entry in configs.items()})[:12],
        )

    assets = []
    if spec.architectures or spec.dynamic:
        assets.append(config(ARCHITECTURE_CONFIG, ARCHITECTURE, spec.architectures, "How each model is trained"))
    for family, (name, what) in CONFIGS.items():
        if attacks := spec.family(family):
            assets.append(config(name, ATTACK, attacks, what, family))
    return assets


def publish_config(cell: CellContext, document: Mapping[str, Any]) -> CellResult:
    """Store a config as the value of the cell and show it in the UI."""
    stored = write_config(cell.destination, document)
    return CellResult(stored, {"config": dg.MetadataValue.json(dict(document))})


def read_recipe(cell: CellContext, architecture: str) -> TrainingRecipe:
    """The training recipe that was materialized.

    Raises:
        ConfigChangedError: the experiment file differs now.
    """
    stored = TrainingRecipe.model_validate(read_config(cell.read(ARCHITECTURE_CONFIG, **{ARCHITECTURE: architecture})))
    _refuse_change(cell, ARCHITECTURE_CONFIG, architecture, stored, cell.spec.architectures[architecture])
    return stored


def read_attack(cell: CellContext, attack: str, family: Family = "evasion") -> Any:
    """The attack config that was materialized, in the type of its family.

    Raises:
        ConfigChangedError: the experiment file differs now.
    """
    name, _ = CONFIGS[family]
    stored = attack_of(read_config(cell.read(name, **{ATTACK: attack})), family)
    _refuse_change(cell, name, attack, stored, cell.spec.family(family)[attack])
    return stored


def _refuse_change(cell: CellContext, asset: str, key: str, stored: BaseModel, declared: BaseModel) -> None:
    """Refuse a changed config: a cell must be made from what its lineage says, the materialized config."""
    if stored == declared:
        return
    old, new = stored.model_dump(), declared.model_dump()
    changes = ", ".join(f"{name} {old.get(name)!r} -> {new[name]!r}" for name in new if new[name] != old.get(name))
    name = f"{cell.spec.name}/{asset}"
    raise ConfigChangedError(
        f"{name} {key} was edited since it was materialized ({changes}): materialize it first,"
        f" `{command_for(name, key)}`"
    )
