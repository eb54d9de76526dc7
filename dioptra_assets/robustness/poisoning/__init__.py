"""Backdoor poisoning: configs, poisoning a training set, and measuring what it did.

>>> parse_poisoning({"method": "baseline", "target_class": 3, "poison_fraction": 0.1}).threat_model().budget
'0.1 of the training rows of other classes, relabelled; trigger of 5 pixels'
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from dioptra_assets.robustness.poisoning.adversarial_embedding import AdversarialEmbedding, train_embedded
from dioptra_assets.robustness.poisoning.base import (
    PoisonedTrainingSet,
    Poisoning,
    poison_training_set,
    select_rows,
    triggered_testing_set,
)
from dioptra_assets.robustness.poisoning.baseline import BaselineBackdoor
from dioptra_assets.robustness.poisoning.clean_label import CleanLabelBackdoor
from dioptra_assets.robustness.poisoning.metrics import (
    POISONING_EXAMPLE_COLUMNS,
    POISONING_METRIC_COLUMNS,
    poison_curve,
    poisoning_examples,
    poisoning_metrics,
)
from dioptra_assets.robustness.poisoning.trigger import Trigger

POISONINGS: dict[str, type[Poisoning]] = {
    "baseline": BaselineBackdoor,
    "clean_label": CleanLabelBackdoor,
    "adversarial_embedding": AdversarialEmbedding,
}

# The type of a poisoning entry in a config.
AnyPoisoning = Annotated[BaselineBackdoor | CleanLabelBackdoor | AdversarialEmbedding, Field(discriminator="method")]


def parse_poisoning(entry: Mapping[str, Any]) -> Poisoning:
    """The poisoning config of one entry, which names its `method`.

    Raises:
        ValueError: for an unknown method, naming those that exist, or (pydantic.ValidationError) for a wrong field.
    """
    method = entry.get("method")
    if method not in POISONINGS:
        raise ValueError(f"method is {method!r}: allowed are {', '.join(sorted(POISONINGS))}")
    return POISONINGS[method].model_validate(dict(entry))


__all__ = [
    "POISONINGS",
    "POISONING_EXAMPLE_COLUMNS",
    "POISONING_METRIC_COLUMNS",
    "AdversarialEmbedding",
    "AnyPoisoning",
    "BaselineBackdoor",
    "CleanLabelBackdoor",
    "PoisonedTrainingSet",
    "Poisoning",
    "Trigger",
    "parse_poisoning",
    "poison_curve",
    "poison_training_set",
    "poisoning_examples",
    "poisoning_metrics",
    "select_rows",
    "train_embedded",
    "triggered_testing_set",
]
