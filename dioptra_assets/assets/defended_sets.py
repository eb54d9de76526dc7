"""Preprocessing defences: one group of assets per defence.

Why: docs/decisions/0012-defence-rows-of-the-attacked-model.md
"""

from collections.abc import Callable

import dagster as dg

from dioptra_assets.assets.adversarial_sets import attack_model
from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.config_assets import ARCHITECTURE_CONFIG, ATTACK_CONFIG, read_recipe
from dioptra_assets.assets.datasets import image_set_metadata
from dioptra_assets.assets.models import CLEAN_PREDICTION_COLUMNS, GPU_POOL, predict_set, train_model
from dioptra_assets.robustness.defences import (
    Defence,
    defend_set,
    defended_model,
    defended_training_set,
    split_before_copies,
)
from dioptra_assets.robustness.image_set import ImageSet
from partitions.attacks import Family, attack_document
from partitions.entries import config_hash
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.image_store import read_image_set, write_image_set
from resources.models import read_model
from resources.store import StoredCell


def defended_set_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """The assets of every defence of the experiment."""
    return [asset for name, defence in spec.defences.items() for asset in _defence_assets(spec, name, defence)]


def model_behind(defence: Defence, name: str) -> str:
    """The asset of the models behind a defence, fitted on defended images if the defence applies to fitting."""
    return f"defended_model/{name}" if defence.apply_fit else "model"


def testing_set_behind(defence: Defence, name: str) -> str:
    """The asset of the testing images as seen by a model behind a defence."""
    return f"defended_testing_set/{name}" if defence.apply_predict else "testing_set"


def _defence_assets(spec: ExperimentSpec, name: str, defence: Defence) -> list[dg.AssetsDefinition]:
    model = model_behind(defence, name)
    # The entry is the code of these assets: editing it makes them stale.
    code_version = config_hash(attack_document(defence))[:12]
    what = defence.describe()

    def defended(
        asset: str, source: str, description: str, dimensions: tuple[str, ...] = (), family: Family = "evasion"
    ) -> dg.AssetsDefinition:
        def compute(cell: CellContext) -> CellResult:
            image_set = read_image_set(cell.read(source, **cell.cell.partition))
            return defend_cell(cell, defence, image_set)

        return cell_asset(
            spec,
            f"{asset}/{name}",
            compute,
            description=description,
            dimensions=dimensions,
            family=family,
            deps=[source],
            kinds={"numpy"},
            params=lambda partition: attack_document(defence) | dict(partition),
            code_version=code_version,
            seeded=True,
        )

    assets: list[dg.AssetsDefinition] = []
    if defence.apply_predict:
        assets.append(defended("defended_testing_set", "testing_set", f"The testing set behind {what}."))
        if spec.attacks:
            assets.append(
                defended(
                    "defended_set",
                    "adversarial_set",
                    f"The adversarial set behind {what}: the attack did not know of it (oblivious).",
                    (ARCHITECTURE, ATTACK),
                )
            )
        if spec.poisonings:
            assets.append(
                defended(
                    "defended_triggered_set",
                    "triggered_testing_set",
                    f"The triggered testing set behind {what}.",
                    (ATTACK,),
                    "poisoning",
                )
            )
    if defence.apply_fit:
        assets += _fitted_assets(spec, name, defence, code_version)
    assets.append(
        cell_asset(
            spec,
            f"defended_predictions/{name}",
            lambda cell: predict_set(
                cell,
                cell.read(model, **cell.cell.partition),
                read_image_set(cell.read(testing_set_behind(defence, name))),
            ),
            description=f"Predictions of each model on every clean testing image behind {what}.",
            dimensions=(ARCHITECTURE,),
            deps=[model, testing_set_behind(defence, name)],
            kinds={"pandas"},
            columns=CLEAN_PREDICTION_COLUMNS,
            pool=GPU_POOL,
            params=dict,
        )
    )
    if spec.attacks:
        assets.append(_adaptive_asset(spec, name, defence, code_version))
    return assets


def defend_cell(cell: CellContext, defence: Defence, image_set: ImageSet, *, training: bool = False) -> CellResult:
    """Defend a set and store it, as images to predict or as training data."""
    n = len(defended_training_set(defence, image_set, seed=cell.seed)) if training else len(image_set)
    stored = write_image_set(
        cell.destination,
        defend_set(defence, image_set, seed=cell.seed, training=training, progress=cell.progress("defended")),
        n=n,
        image_shape=image_set.image_shape,
        class_names=image_set.class_names,
        attributes={"defence": attack_document(defence), "seed": cell.seed},
    )
    return CellResult(stored, image_set_metadata(read_image_set(stored)) | {"seed": cell.seed}, {"n": n})


def _fitted_assets(spec: ExperimentSpec, name: str, defence: Defence, code_version: str) -> list[dg.AssetsDefinition]:
    def fit(cell: CellContext) -> CellResult:
        recipe = read_recipe(cell, cell.cell.partition[ARCHITECTURE])
        training_set = read_image_set(cell.read(f"defended_training_set/{name}"))
        seed = recipe.seed if recipe.seed is not None else cell.seed
        return train_model(cell, recipe, split_before_copies(training_set, recipe.validation_split, seed))

    what = defence.describe()
    return [
        cell_asset(
            spec,
            f"defended_training_set/{name}",
            lambda cell: defend_cell(cell, defence, read_image_set(cell.read("training_set")), training=True),
            description=f"The training set behind {what}, on which `defended_model/{name}` is fitted.",
            deps=["training_set"],
            kinds={"numpy"},
            params=lambda _: attack_document(defence),
            code_version=code_version,
            seeded=True,
        ),
        cell_asset(
            spec,
            f"defended_model/{name}",
            fit,
            description=f"Each model, fitted on training images behind {what}.",
            dimensions=(ARCHITECTURE,),
            deps=[ARCHITECTURE_CONFIG, f"defended_training_set/{name}"],
            kinds={"tensorflow"},
            pool=GPU_POOL,
            params=lambda partition: attack_document(spec.architectures[partition[ARCHITECTURE]]),
            seeded=True,
        ),
    ]


def _adaptive_asset(spec: ExperimentSpec, name: str, defence: Defence, code_version: str) -> dg.AssetsDefinition:
    model = model_behind(defence, name)

    def behind(cell: CellContext) -> Callable[[StoredCell], object]:
        return lambda stored: defended_model(read_model(stored), defence, cell.seed, spec.eot_samples)

    return cell_asset(
        spec,
        f"adaptive_set/{name}",
        lambda cell: attack_model(
            cell, cell.read(model, **{ARCHITECTURE: cell.cell.partition[ARCHITECTURE]}), behind(cell)
        ),
        description="Every testing image, perturbed by an attack that knows model and defence: it attacks the model"
        f" behind {defence.describe()} (BPDA where the defence has no gradient, EOT where it is random).",
        dimensions=(ARCHITECTURE, ATTACK),
        deps=[ATTACK_CONFIG, model, "testing_set"],
        kinds={"tensorflow", "numpy"},
        pool=GPU_POOL,
        params=lambda partition: attack_document(spec.attacks[partition[ATTACK]]) | dict(partition),
        code_version=f"{code_version}-{spec.eot_samples}",
        seeded=True,
    )
