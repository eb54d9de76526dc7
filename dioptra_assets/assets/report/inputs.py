"""The stored cells that a report is made from: configs, image sets, models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dioptra_assets.assets.cell_context import CellContext
from dioptra_assets.assets.config_assets import ARCHITECTURE_CONFIG, CONFIGS
from partitions.attacks import Family
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import StoredCell

Partitions = Sequence[Mapping[str, str]]
WHOLE: Partitions = ({},)


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made from beside its tables.

    Attributes:
        configs: of architectures and attacks.
        sets: image sets, the testing set first.
        models: each with the set it was fitted on; None where nothing was trained, or where that set is gone.
    """

    configs: list[StoredCell]
    sets: list[StoredCell]
    models: list[tuple[StoredCell, StoredCell | None]]


def present_inputs(cell: CellContext) -> ReportInputs:
    """Those that have been materialized.

    Raises:
        MissingCellError: where there is no testing set.
    """
    return ReportInputs(_configs(cell), _sets(cell), _models(cell))


def _configs(cell: CellContext) -> list[StoredCell]:
    spec = cell.spec
    configs = [(ARCHITECTURE_CONFIG, by_architecture(cell))]
    configs += [(name, _by_attack(cell, family)) for family, (name, _) in CONFIGS.items() if spec.family(family)]
    return _present(cell, configs)


def _sets(cell: CellContext) -> list[StoredCell]:
    spec = cell.spec
    evasion, poisoning = _by_both(cell, "evasion"), _by_attack(cell, "poisoning")
    sets: list[tuple[str, Partitions]] = [
        *([("training_set", WHOLE)] if spec.trains else []),
        ("adversarial_set", evasion),
        ("poisoned_training_set", poisoning),
        ("triggered_testing_set", poisoning),
        ("inverted_set", _by_both(cell, "inversion")),
    ]
    for name, defence in spec.defences.items():
        if defence.apply_fit:
            sets.append((f"defended_training_set/{name}", WHOLE))
        if defence.apply_predict:
            sets.append((f"defended_testing_set/{name}", WHOLE))
            sets.append((f"defended_set/{name}", evasion))
            sets.append((f"defended_triggered_set/{name}", poisoning))
        sets.append((f"adaptive_set/{name}", evasion))
    return [cell.read("testing_set"), *_present(cell, sets)]


def _models(cell: CellContext) -> list[tuple[StoredCell, StoredCell | None]]:
    spec = cell.spec
    fitted_on = {"model": "training_set", "poisoned_model": "poisoned_training_set"}
    wanted = [("model", by_architecture(cell)), ("poisoned_model", _by_both(cell, "poisoning"))]
    for name, defence in spec.defences.items():
        if defence.apply_fit:
            wanted.append((f"defended_model/{name}", by_architecture(cell)))
            fitted_on[f"defended_model/{name}"] = f"defended_training_set/{name}"
    models: list[tuple[StoredCell, StoredCell | None]] = []
    for asset, partitions in wanted:
        for stored in _present(cell, [(asset, partitions)]):
            attack = {ATTACK: stored.cell.partition[ATTACK]} if ATTACK in stored.cell.partition else {}
            trained = stored.manifest.attributes["training_images"]
            images = _present(cell, [(fitted_on[asset], [attack])]) if trained else []
            models.append((stored, images[0] if images else None))
    return models


def by_architecture(cell: CellContext) -> Partitions:
    """The partitions of an asset of architectures."""
    return [{ARCHITECTURE: architecture} for architecture in cell.spec.architectures]


def _by_attack(cell: CellContext, family: Family) -> Partitions:
    return [{ATTACK: attack} for attack in cell.spec.family(family)]


def _by_both(cell: CellContext, family: Family) -> Partitions:
    return [{**one, **other} for other in _by_attack(cell, family) for one in by_architecture(cell)]


def _present(cell: CellContext, wanted: Sequence[tuple[str, Partitions]]) -> list[StoredCell]:
    return [stored for asset, partitions in wanted for stored in cell.present(asset, partitions)[0]]
