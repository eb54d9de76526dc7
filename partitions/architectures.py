"""Architecture keys <-> training recipes."""

from collections.abc import Mapping
from typing import Any

from dioptra_assets.robustness.data import DataSource
from dioptra_assets.robustness.training.architectures import ARCHITECTURES
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.entries import ExperimentError, expand, one_of


def training_recipes(
    experiment: str, entries: Mapping[str, Any], source: DataSource, limit: int | None = None
) -> dict[str, TrainingRecipe]:
    """The training recipes of an experiment by architecture key, sweeps expanded to at most `limit`.

    An entry's `architecture` may be left out where its name is one: `le_net: {epochs: 3}`.

    Raises:
        ExperimentError: for a wrong entry, and for an architecture that cannot take the images of `source`.
    """
    recipes = expand(experiment, "architectures", entries, recipe_model, limit)
    for key, recipe in recipes.items():
        try:
            recipe.check_fits(source.image_shape, source.class_count())
        except ValueError as error:
            raise ExperimentError(f"experiment {experiment!r}, architectures entry {key!r}: {error}") from error
    return recipes


def recipe_model(entry: str, parameters: dict[str, Any]) -> tuple[type[TrainingRecipe], dict[str, Any]]:
    """For `expand`: the type of an entry's config, and the entry with its architecture."""
    architecture = parameters.get("architecture", entry)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(f"field 'architecture': {architecture!r} is not allowed, {one_of(ARCHITECTURES)}")
    return TrainingRecipe, {"architecture": architecture, **parameters}
