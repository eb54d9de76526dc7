"""An experiment whose file is wrong stands among the others as one asset, which says what is wrong."""

import re
from typing import Any

import dagster as dg

from partitions.entries import ExperimentError

ASSET = "not_loaded"
# The entry of that asset's metadata that holds the sentence.
MISTAKE = "mistake"


def broken_experiment(name: str, sentence: str) -> dg.Definitions:
    """What stands in an experiment's place."""
    # The folder's name may be what is wrong, and a group takes no other characters.
    group = re.sub("[^A-Za-z0-9_]", "_", name)
    asset = dg.AssetSpec(
        dg.AssetKey([name, ASSET]),
        group_name=group,
        # Dagster shows it as Markdown: what the file says stays text.
        description=re.sub(r"([<\[*`\\])", r"\\\1", sentence),
        kinds={"yaml", "broken"},
        metadata={MISTAKE: sentence},
    )
    return dg.Definitions(assets=[asset])


def mistakes(graph: Any) -> dict[str, str]:
    """Name of each experiment that could not be loaded -> what is wrong with its file."""
    broken = [key for key in graph.get_all_asset_keys() if key.path[-1] == ASSET]
    return {
        key.path[0]: str(graph.get(key).metadata[MISTAKE])
        for key in sorted(broken)
        if MISTAKE in graph.get(key).metadata
    }


def refuse_broken(graph: Any, experiment: str) -> None:
    """Refuse what asks for the assets of an experiment that could not be loaded.

    Raises:
        ExperimentError: what is wrong with its file.
    """
    if sentence := mistakes(graph).get(experiment):
        raise ExperimentError(sentence)
