"""The partitions of an experiment's assets, as Dagster has them."""

from collections.abc import Sequence

import dagster as dg

from partitions.attacks import Family
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK


def partitions_of(
    spec: ExperimentSpec, dimensions: Sequence[str], family: Family = "evasion"
) -> dg.PartitionsDefinition[str] | None:
    """The partitions of an asset of an experiment, by the names of its dimensions and the family of its attacks."""
    definitions: dict[str, dg.PartitionsDefinition[str]]
    if spec.branch:
        keys = {ATTACK: list(spec.family(family))}
        definitions = {
            dimension: dg.DynamicPartitionsDefinition(name=dynamic_dimension(spec.name, spec.branch))
            if dimension == ARCHITECTURE
            else dg.StaticPartitionsDefinition(keys[dimension])
            for dimension in dimensions
        }
    elif spec.dynamic:
        definitions = {
            dimension: dg.DynamicPartitionsDefinition(name=dynamic_dimension(spec.name, dimension, family))
            for dimension in dimensions
        }
    else:
        keys = {ARCHITECTURE: list(spec.architectures), ATTACK: list(spec.family(family))}
        definitions = {dimension: dg.StaticPartitionsDefinition(keys[dimension]) for dimension in dimensions}
    if not definitions:
        return None
    return next(iter(definitions.values())) if len(definitions) == 1 else dg.MultiPartitionsDefinition(definitions)


def dynamic_dimension(experiment: str, dimension: str, family: Family = "evasion") -> str:
    """The name under which Dagster keeps the keys of a dynamic dimension."""
    return f"{experiment}_{family}_{dimension}" if dimension == ATTACK else f"{experiment}_{dimension}"


def is_dynamic(definition: dg.PartitionsDefinition[str] | None) -> bool:
    """Whether the keys of an asset, or of one of its dimensions, are added on demand."""
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return any(is_dynamic(dimension.partitions_def) for dimension in definition.partitions_defs)
    return isinstance(definition, dg.DynamicPartitionsDefinition)
