"""Housekeeping commands: `clean`, `verify`, `export`, `import` and `backup`."""

from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from resources import settings

if TYPE_CHECKING:
    from resources.store import CellStore

console = Console()
errors = Console(stderr=True)
Name = Annotated[str, typer.Argument(help="Name of the experiment, for example digits.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(verify)
    app.command(name="export")(export_archive)
    app.command(name="import")(import_archive)
    app.command()(clean)
    app.command(name="backup")(backup_home)


def verify(
    experiment: Annotated[str, typer.Argument(help="Name of the experiment. Default: all.")] = "",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Stop serving damaged cells, so that `materialize` computes them again.")
    ] = False,
) -> None:
    """Read every byte of the store and compare it with the manifests. Exits with 1 if anything differs."""
    from dioptra_assets.housekeeping import verification
    from resources.store import CellStore

    store = CellStore(settings.store_url())
    found = verification.verify_store(store, experiment)
    if experiment and not (found.cells or found.faults):
        stored = ", ".join(sorted({path.partition("/")[0] for path in store.sizes_below("") if "/versions/" in path}))
        _complain(f"nothing of {experiment!r} is stored, available: {stored or 'nothing'}")
        raise typer.Exit(2)
    for fault in found.faults:
        _complain(fault)
    _say(f"{found.cells} cells in {found.versions} versions, {found.size:,} bytes read, {len(found.faults)} faults")
    if withdraw and found.damaged:
        from dioptra_assets.definitions import defs

        declared = {key.path[0] for key in defs().resolve_asset_graph().get_all_asset_keys()}
        _refuse_others(store, {folder.partition("/")[0] for folder in found.damaged} & declared)
        verification.withdraw(store, found)
        _say(f"damaged cells no longer served: {len(found.damaged)}; `dioptra-assets materialize` computes them again")
    if found.faults:
        raise typer.Exit(1)


def export_archive(
    experiment: Name, target: Annotated[Path, typer.Argument(help="File to write, for example digits.tar.")]
) -> None:
    """Write all stored cells of an experiment to one file, for `import` into another store."""
    from dioptra_assets.housekeeping.archive import ArchiveError, export_experiment
    from resources.store import CellStore

    try:
        cells = export_experiment(CellStore(settings.store_url()), experiment, target)
    except FileExistsError as error:
        _complain(f"{target} already exists: choose another file")
        raise typer.Exit(2) from error
    except (ArchiveError, LookupError) as error:
        _complain(error)
        raise typer.Exit(1) from error
    _say(f"{target}: {cells} cells of {experiment}, {target.stat().st_size:,} bytes")


def import_archive(
    source: Annotated[Path, typer.Argument(help="File written by `export`.")],
    replace: Annotated[
        bool, typer.Option(help="Replace cells of this store that differ from those in the file.")
    ] = False,
) -> None:
    """Import an exported experiment into this store. Everything is checked first; on any error nothing is imported."""
    from dioptra_assets.housekeeping.archive import ArchiveError, import_experiment
    from resources.store import CellStore

    try:
        experiment, imported, kept = import_experiment(CellStore(settings.store_url()), source, replace=replace)
    except ArchiveError as error:
        _complain(error)
        raise typer.Exit(1) from error
    _say(f"{imported} cells of {experiment} imported, {kept} were already here")


def clean(
    experiment: Annotated[str, typer.Argument(help="Name of the experiment. Default: all.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove what is listed. Without this, nothing is removed.")
    ] = False,
    days: Annotated[int, typer.Option(min=0, help="Remove failed runs older than this many days.")] = 30,
) -> None:
    """List or remove what is no longer needed: cells of removed entries, superseded versions and old failed runs."""
    import dagster as dg

    from dioptra_assets.dagster_internals import InstanceRef
    from dioptra_assets.definitions import defs
    from dioptra_assets.housekeeping import rubbish
    from dioptra_assets.runs.launch import UnknownExperimentError
    from resources.store import CellStore
    from resources.tracking.resource import Tracking, TrackingUnavailable

    store = CellStore(settings.store_url())
    try:
        declared = rubbish.declared_cells(defs().resolve_asset_graph(), experiment)
    except UnknownExperimentError as error:
        _complain(error)
        raise typer.Exit(2) from error
    found = rubbish.rubbish(store, declared)
    tracking = Tracking(mlflow_tracking_uri=settings.tracking_uri(), artifact_location=settings.artifact_location())
    client = None
    try:
        client = tracking.client()
        experiments = {asset.split("/")[0] for asset in declared}
        found.mlflow_runs = rubbish.orphaned_mlflow_runs(client, store, found, experiments)
    except TrackingUnavailable as error:
        _complain(f"MLflow runs are not checked: {error}")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(settings.home()))) as instance:
        found.dagster_runs = rubbish.old_runs(instance, timedelta(days=days))
        for cell in found.cells:
            _say(f"cell of a removed entry: {cell}")
        _say(
            f"{len(found.cells)} cells of removed entries, {len(found.versions)} superseded versions,"
            f" {found.size:,} bytes; {len(found.mlflow_runs)} MLflow runs without a cell; {len(found.dagster_runs)}"
            f" failed runs older than {days} days"
        )
        if yes:
            _refuse_others(store, {asset.partition("/")[0] for asset in declared})
        if not any((found.cells, found.versions, found.mlflow_runs, found.dagster_runs)):
            return
        if not yes:
            _say("nothing was removed: use `--yes` to remove it")
            return
        rubbish.remove_rubbish(store, found)
        for run in found.mlflow_runs:
            assert client is not None
            client.delete_run(run)
        for run in found.dagster_runs:
            instance.delete_run(run)
    _say("removed")


def backup_home(
    target: Annotated[Path, typer.Argument(help="An empty or new folder.")],
) -> None:
    """Back up the embedded home while it is in use: the databases of Dagster and MLflow, and the verified store.

    The backup is itself a home. To restore, set DAGSTER_HOME to it or copy its content back.
    """
    from dioptra_assets.housekeeping.backup import BackupError, backup
    from resources.store import CellStore

    try:
        cells = backup(settings.home(), CellStore(settings.store_url()), target)
    except BackupError as error:
        _complain(error)
        raise typer.Exit(2) from error
    _say(f"{target}: {cells} cells, and the databases of Dagster and MLflow; set DAGSTER_HOME={target} to use the copy")


def _refuse_others(store: "CellStore", experiments: Collection[str]) -> None:
    """Refuse to change an experiment that another checkout has claimed, see `resources.claims`."""
    from dioptra_assets.definitions import experiment_spec
    from dioptra_assets.runs.launch import UnknownExperimentError
    from resources.claims import refuse_others

    for name in sorted(experiments):
        with suppress(UnknownExperimentError):  # its cells are created by jobs, no file declares them
            spec = experiment_spec(name)
            refuse_others(store, name, spec.folder, spec.digest)


def _say(what: str) -> None:
    console.print(what, soft_wrap=True, markup=False, highlight=False)


def _complain(what: object) -> None:
    errors.print(str(what), style="red", soft_wrap=True, markup=False, highlight=False)
