"""The entries of an experiment file as assets, so that editing one entry makes exactly its cells stale."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel

from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset
from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.training import TrainingRecipe
from partitions.attacks import attack_document, attack_of
from partitions.configs import config_hash
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.documents import read_config, write_config

ATTACK_CONFIG = "attack_config"
ARCHITECTURE_CONFIG = "architecture_config"


class ConfigChangedError(RuntimeError):
    """An experiment file says something else than the config that was materialized."""


def config_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`architecture_config` and `attack_config`; the version of each cell is the hash of its entry."""

    def config(name: str, dimension: str, documents: Mapping[str, Mapping[str, Any]], what: str) -> dg.AssetsDefinition:
        def compute(cell: CellContext) -> CellResult:
            document = documents[cell.cell.partition[dimension]]
            stored = write_config(cell.store, cell.cell, document, **cell.publishing)
            return CellResult(stored, {"config": dg.MetadataValue.json(document)})

        return cell_asset(
            spec,
            name,
            compute,
            description=f"{what}, as the experiment file gives it. Materialize it after editing the file: its cells"
            " downstream then become stale, and no others.",
            dimensions=(dimension,),
            kinds={"yaml"},
            # The entries themselves are the code: the UI marks what was edited and not yet materialized.
            code_version=config_hash(documents)[:12],
        )

    recipes = {key: recipe.model_dump(mode="json") for key, recipe in spec.architectures.items()}
    attacks = {key: attack_document(attack) for key, attack in spec.attacks.items()}
    assets = [config(ARCHITECTURE_CONFIG, ARCHITECTURE, recipes, "How each model is trained")]
    if attacks:
        assets.append(config(ATTACK_CONFIG, ATTACK, attacks, "How each evasion attack is run, and its budget"))
    return assets


def read_recipe(cell: CellContext, architecture: str) -> TrainingRecipe:
    """The training recipe that was materialized.

    Raises:
        ConfigChangedError: when the experiment file now says something else.
    """
    stored = TrainingRecipe.model_validate(read_config(cell.read(ARCHITECTURE_CONFIG, **{ARCHITECTURE: architecture})))
    _refuse_change(cell, ARCHITECTURE_CONFIG, architecture, stored, cell.spec.architectures[architecture])
    return stored


def read_attack(cell: CellContext, attack: str) -> Attack:
    """The attack config that was materialized.

    Raises:
        ConfigChangedError: when the experiment file now says something else.
    """
    stored = attack_of(read_config(cell.read(ATTACK_CONFIG, **{ATTACK: attack})))
    _refuse_change(cell, ATTACK_CONFIG, attack, stored, cell.spec.attacks[attack])
    return stored


def _refuse_change(cell: CellContext, asset: str, key: str, stored: BaseModel, declared: BaseModel) -> None:
    """What a cell is made from must be what its lineage says: the config that was materialized."""
    if stored == declared:
        return
    old, new = stored.model_dump(), declared.model_dump()
    changes = ", ".join(f"{name} {old.get(name)!r} -> {new[name]!r}" for name in new if new[name] != old.get(name))
    name = f"{cell.spec.name}/{asset}"
    raise ConfigChangedError(
        f"{name} {key} was edited since it was materialized ({changes}): materialize it first,"
        f" `dg launch --assets '{name}' --partition '{key}'`"
    )
