"""What the shell offers after a tab: names of experiments, assets, cells, entry points and their parameters.

A tab must be answered at once, so nothing that takes time is imported, and files are read as plain YAML.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer


def experiments(incomplete: str) -> list[str]:
    """The experiments that have a file."""
    return _fitting((path.parent.name for path in _files()), incomplete)


def assets(context: typer.Context, incomplete: str) -> list[str]:
    """The assets of the experiment that was typed, those that every experiment with attacks has."""
    known = (
        "training_set testing_set architecture_config attack_config model clean_predictions adversarial_set"
        " evasion_examples evasion_metrics evasion_gate sanity security_curves transfer_matrix report"
    )
    return _fitting(known.split(), incomplete)


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """The cells of the experiment that was typed: its architectures, and each with each attack."""
    from dioptra_assets.definitions import experiment_spec

    try:
        spec = experiment_spec(str(context.params.get("experiment")))
    except Exception:  # noqa: BLE001 - a tab is no place to complain of a file
        return []
    pairs = ("|".join(pair) for pair in itertools.product(spec.architectures, spec.attacks))
    return _fitting([*spec.architectures, *spec.attacks, *pairs], incomplete)


def entry_points(incomplete: str) -> list[str]:
    """The entry points."""
    from dioptra_assets.entry_points.demos import ENTRY_POINTS

    return _fitting(ENTRY_POINTS, incomplete)


def parameters(context: typer.Context, incomplete: str) -> list[str]:
    """The parameters of the entry point that was typed, each with `=`."""
    from dioptra_assets.entry_points.demos import ENTRY_POINTS
    from dioptra_assets.entry_points.help import parameters_table

    entry = ENTRY_POINTS.get(str(context.params.get("name")))
    return _fitting((f"{row.name}=" for row in parameters_table(entry)), incomplete) if entry else []


def _files() -> Iterator[Path]:
    return iter(sorted((Path(__file__).parent.parent / "defs").glob("*/defs.yaml")))


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
