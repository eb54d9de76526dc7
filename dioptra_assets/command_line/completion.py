"""Shell completion: names of experiments, assets, cells, entry points and their parameters.

Completion must be instant, so slow imports are avoided where possible.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer


def experiments(incomplete: str) -> list[str]:
    """Experiments that have a file."""
    return _fitting((path.parent.name for path in _files()), incomplete)


def assets(context: typer.Context, incomplete: str) -> list[str]:
    """Assets that every experiment with attacks has."""
    known = (
        "training_set testing_set architecture_config attack_config model clean_predictions adversarial_set"
        " evasion_examples evasion_metrics evasion_gate sanity security_curves transfer_matrix report"
    )
    return _fitting(known.split(), incomplete)


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """Cells of the experiment typed so far: its architectures, its attacks, and every pair of both."""
    from dioptra_assets.definitions import experiment_spec

    try:
        spec = experiment_spec(str(context.params.get("experiment")))
    except Exception:  # noqa: BLE001 - completion must not report a broken file
        return []
    pairs = ("|".join(pair) for pair in itertools.product(spec.architectures, spec.attacks))
    return _fitting([*spec.architectures, *spec.attacks, *pairs], incomplete)


def entry_points(incomplete: str) -> list[str]:
    """All entry points."""
    from dioptra_assets.entry_points.demos import ENTRY_POINTS

    return _fitting(ENTRY_POINTS, incomplete)


def parameters(context: typer.Context, incomplete: str) -> list[str]:
    """Parameters of the entry point typed so far, each followed by `=`."""
    from dioptra_assets.entry_points.demos import ENTRY_POINTS
    from dioptra_assets.entry_points.help import parameters_table

    entry = ENTRY_POINTS.get(str(context.params.get("name")))
    return _fitting((f"{row.name}=" for row in parameters_table(entry)), incomplete) if entry else []


def _files() -> Iterator[Path]:
    return iter(sorted((Path(__file__).parent.parent / "defs").glob("*/defs.yaml")))


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
