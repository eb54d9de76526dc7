"""The command line: `dioptra-assets`."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from dioptra_assets.command_line import completion, housekeeping
from dioptra_assets.command_line.display import showing
from resources import settings

if TYPE_CHECKING:
    from dioptra_assets.entry_points.entry_point import EntryPoint

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"dioptra-assets {version('dioptra-assets')}", highlight=False)
        raise typer.Exit


@app.callback()
def _settings(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Adversarial robustness of image classifiers, as a graph of Dagster assets."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


Experiment = Annotated[
    str, typer.Argument(help="Name of the experiment, for example digits.", autocompletion=completion.experiments)
]


@app.command()
def materialize(
    experiment: Experiment,
    asset: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute only this asset and its inputs, for example model; `model+` adds everything downstream.",
            autocompletion=completion.assets,
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute only these cells and their inputs, for example 'le_net|fgm_0.3'; `*` matches anything.",
            autocompletion=completion.cells,
        ),
    ] = None,
) -> None:
    """Compute every missing or stale cell of an experiment in this process, then write its report."""
    if _materialized(experiment, asset or (), cell or ()):
        _write_report(experiment, None)


def _materialized(experiment: str, assets: Sequence[str] = (), cells: Sequence[str] = ()) -> bool:
    """Compute what is missing or stale and print the outcome. Returns whether the report was computed again."""
    with showing(console):
        # Imported here: this takes seconds, and the display is already up.
        import dioptra_assets as da
        from dioptra_assets.runs.launch import UnknownExperimentError
        from dioptra_assets.runs.selection import SelectionError

        try:
            launched = da.materialize(experiment, log=lambda line: None, assets=assets, cells=cells)
        except (UnknownExperimentError, SelectionError) as error:
            _complain(error)
            raise typer.Exit(2) from error
    count = len(launched.computed)
    console.print(f"{count:,} {'cell' if count == 1 else 'cells'} computed, {launched.fresh:,} were up to date")
    failed: dict[str, list[str]] = {}
    for cell, why in launched.failed.items():
        failed.setdefault(why, []).append(str(cell))
    for why, names in failed.items():
        _complain(f"{', '.join(names)} failed: {why}")
    if launched.skipped:
        _complain(f"{len(launched.skipped)} cells not tried, because their inputs failed")
    if launched.failed:
        raise typer.Exit(1)
    return any(cell.asset == f"{experiment}/report" for cell in launched.computed)


@app.command()
def demo() -> None:
    """Run the experiment `digits` from data to report, and show where to find the results."""
    _say("Handwritten digits: train two models, attack each, evaluate both on every adversarial set.")
    _materialized("digits")
    transfer("digits")
    gate("digits")
    _write_report("digits", None)
    _say("graph:  `make ui`, then http://127.0.0.1:3000/locations/dioptra_assets/asset-groups/digits/lineage")
    _say('python: import dioptra_assets as da; da.load("digits/evasion_metrics")')


@app.command(name="list")
def list_experiments(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="Name of the experiment whose assets to list. Default: list all experiments.",
            autocompletion=completion.experiments,
        ),
    ] = None,
    every_cell: Annotated[bool, typer.Option("--cells", help="List every cell with its state, one per line.")] = False,
) -> None:
    """List all experiments, or the assets of one experiment, with the state of their cells."""
    from dioptra_assets.command_line import overview
    from dioptra_assets.runs.launch import UnknownExperimentError

    try:
        assets = overview.assets(experiment)
    except UnknownExperimentError as error:
        _complain(error)
        raise typer.Exit(2) from error
    if every_cell:
        for asset in assets:
            for path, state in asset.states.items():
                console.print(f"{state:<10}  {path}", soft_wrap=True, markup=False, highlight=False)
        return
    table = Table("experiment" if experiment is None else "asset", "cells", "up to date", "stale", "missing")
    for name, states in overview.counted(assets, by_experiment=experiment is None).items():
        counts = [str(states[state]) for state in ("up to date", "stale", "missing")]
        wrong = any(asset.mistake for asset in assets if asset.asset.partition("/")[0] == name)
        table.add_row(escape(name), *(["[red]broken[/red]"] if wrong else [str(sum(states.values())), *counts]))
    console.print(table)
    for asset in assets:
        if asset.mistake:
            _complain(asset.mistake)


@app.command()
def check(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Name of the experiment. Default: all.", autocompletion=completion.experiments),
    ] = None,
) -> None:
    """Check experiment files and print one sentence per mistake. Exits with 1 if there is any."""
    from dioptra_assets.definitions import mistakes
    from dioptra_assets.runs.launch import UnknownExperimentError

    try:
        wrong = mistakes(experiment)
    except UnknownExperimentError as error:
        _complain(error)
        raise typer.Exit(2) from error
    for sentence in wrong.values():
        _complain(sentence)
    if wrong:
        raise typer.Exit(1)
    _say(f"{experiment or 'all experiments'}: no mistakes found")


@app.command()
def claim(experiment: Experiment) -> None:
    """Claim a stored experiment for this checkout, if another checkout computed it from a different file."""
    from dioptra_assets.definitions import experiment_spec
    from dioptra_assets.runs.launch import UnknownExperimentError
    from resources import claims
    from resources.store import CellStore

    try:
        spec = experiment_spec(experiment)
    except UnknownExperimentError as error:
        _complain(error)
        raise typer.Exit(2) from error
    store = CellStore(settings.store_url())
    before = None
    with suppress(claims.ClaimedError):  # this command repairs a claim that can no longer be read
        before = claims.claim_of(store, experiment)
    claims.claim(store, experiment, spec.folder, spec.digest)
    of_others = f"; it belonged to {before.owner} ({before.user} on {before.host})" if before else ""
    _say(f"{experiment} in {store.url} belongs to {claims.own_claim(store, spec.folder, '').owner}{of_others}")


@app.command()
def transfer(experiment: Experiment) -> None:
    """Print the transfer matrix: every model evaluated on the adversarial images made on every model."""
    import dioptra_assets as da

    metrics = da.load(f"{experiment}/transfer_matrix")
    targets = list(dict.fromkeys(metrics["target"]))
    table = Table(title=f"{experiment}: robust accuracy in %, [95 % interval]")
    table.add_column("attack")
    table.add_column("made on")
    for target in targets:
        table.add_column(f"evaluated on {target}", justify="right")
    for (attack, source), rows in metrics.groupby(["attack", "source"], sort=False):
        by_target = rows.set_index("target")
        table.add_row(
            str(attack),
            str(source),
            *(
                f"{100 * row['robust_accuracy']:.1f}  [{100 * row['robust_accuracy_low']:.1f}, "
                f"{100 * row['robust_accuracy_high']:.1f}]"
                for _, row in by_target.loc[targets].iterrows()
            ),
        )
    console.print(table)


@app.command()
def gate(
    experiment: Experiment,
    version: Annotated[
        str | None, typer.Option(help="Judge only this registered model, given as NAME@VERSION.")
    ] = None,
) -> None:
    """Check the stored results of an experiment, registered models included, against its gates.

    Exits with 0 if all gates hold, 1 if a blocking gate fails, 3 if a gate could not be judged (results are missing,
    stale, or failed their sanity checks), and 2 if there is nothing to judge.
    """
    import dioptra_assets as da
    from dioptra_assets.robustness.evaluation.gates import FAILED, NOT_JUDGED, overall, said
    from dioptra_assets.runs.launch import UnknownExperimentError

    try:
        rows = da.gates(experiment, version)
    except (UnknownExperimentError, LookupError) as error:
        _complain(error)
        raise typer.Exit(2) from error
    if rows.empty:
        _complain(f"experiment {experiment!r} has no gates to judge here: add some under `gates` in its file")
        raise typer.Exit(2)
    marks = {"passed": "[green]pass[/green]", "not judged": "[red]not judged[/red]"}
    for _, row in rows.iterrows():
        failed = {"block": "[red]FAIL[/red]", "warn": "warn"}[row["severity"]]
        mark = marks.get(row["status"], failed)
        console.print(f"{mark}  {row['architecture']} {row['attack']}: {escape(said(row))}", soft_wrap=True)
    code = {FAILED: 1, NOT_JUDGED: 3}.get(overall(rows), 0)
    if code:
        raise typer.Exit(code)


@app.command()
def versions(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment that watches the registry.")],
) -> None:
    """Show the verdict on each registered version: passed, failed, not judged (why), or waiting (next try).

    Exits with 1 if any failed, 3 if any was not judged or is waiting, and 2 if none was seen.
    """
    import dioptra_assets as da

    found = da.verdicts(experiment)
    colours = {"passed": "green", "failed": "red", "not judged": "yellow", "waiting": "cyan"}
    for _, row in found.iterrows():
        colour, then = colours[row["status"]], ""
        if row["status"] == "waiting":
            then = f" (next try at {row['next_try']:%Y-%m-%d %H:%M:%S} UTC)" if row["tries"] else " (next try at once)"
        why = f": {row['why']}" if row["why"] else ""
        console.print(f"[{colour}]{row['status']}[/{colour}]  {escape(row['version'] + then + why)}", soft_wrap=True)
    if found.empty:
        _complain(f"experiment {experiment!r} has seen no registered version; `watch` in its file says which it takes")
        raise typer.Exit(2)
    if (found["status"] != "passed").any():
        raise typer.Exit(1 if (found["status"] == "failed").any() else 3)


@app.command()
def report(
    experiment: Experiment,
    output: Annotated[Path | None, typer.Option(help="File to write the page to.")] = None,
) -> None:
    """Write the report of an experiment to an HTML file."""
    from dioptra_assets.command_line import overview
    from dioptra_assets.runs.launch import UnknownExperimentError

    _write_report(experiment, output)
    with suppress(UnknownExperimentError):  # the file is gone, the report is still stored
        states = {path: state for asset in overview.assets(experiment) for path, state in asset.states.items()}
        if states.get(f"{experiment}/report") == "stale":
            _complain(
                f"the report is out of date, {experiment} has changed since: run `dioptra-assets materialize"
                f" {experiment}`"
            )


def _write_report(experiment: str, output: Path | None) -> None:
    import dioptra_assets as da

    target = output or settings.home() / "reports" / f"{experiment}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"report: {da.load(f'{experiment}/report').save(target)}", soft_wrap=True)


@app.command(
    name="run",
    context_settings={"help_option_names": []},
    help="Run one entry point: dioptra-assets run fgm -P model_architecture=le_net -P eps=0.3",
)
def run_entry_point(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="ENTRY_POINT",
            help="Name of the entry point, for example train, fgm or miface.",
            autocompletion=completion.entry_points,
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-P",
            help="One parameter as name=value; repeat for more.",
            autocompletion=completion.parameters,
        ),
    ] = None,
    depends_on: Annotated[list[str] | None, typer.Option(help="Id of a job that must finish first.")] = None,
    help_wanted: Annotated[bool, typer.Option("--help", help="Show the parameters of the entry point.")] = False,
) -> None:
    """Run one entry point in the workbench. Unknown parameters are refused, with a list of those available."""
    from dioptra_assets.api.submission import ServerError, submit_job
    from dioptra_assets.entry_points.demos import ENTRY_POINTS, entry_point
    from dioptra_assets.entry_points.entry_point import EntryPointError

    if name is None:
        table = Table("entry point", "what it does", title="dioptra-assets run ENTRY_POINT [-P name=value ...]")
        for key, entry in ENTRY_POINTS.items():
            table.add_row(key, entry.help)
        console.print(table)
        return
    try:
        if help_wanted:
            _explain(entry_point(name))
            return
        with showing(console):
            job = submit_job(name, " ".join(f"-P {shlex.quote(one)}" for one in parameter or ()), depends_on)
    except (EntryPointError, ServerError) as error:
        _complain(error)
        raise typer.Exit(2) from error
    for sentence in job.unused:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    console.print(f"job {job.id}: {name} {job.status}", soft_wrap=True)
    for what, value in (("cell", job.cell), ("MLflow run", job.mlflow_run_id)):
        if value:
            console.print(f"{what}: {value}", soft_wrap=True, markup=False)
    if job.status == "failed":
        _complain(job.error)
        raise typer.Exit(1)


@app.command(name="job")
def show_job(job_id: Annotated[str, typer.Argument(metavar="ID", help="Job id, as printed by `run`.")]) -> None:
    """Show the status of a job: queued, started, finished or failed."""
    from dioptra_assets.api.submission import get_job_by_id

    try:
        job = get_job_by_id(job_id)
    except LookupError as error:
        _complain(error)
        raise typer.Exit(2) from error
    for what, value in vars(job).items():
        if value:
            console.print(f"{what}: {value}", soft_wrap=True, markup=False)


def _explain(entry: "EntryPoint") -> None:
    from dioptra_assets.entry_points.help import parameters_table

    console.print(f"{entry.name}: {entry.help}", markup=False)
    for parameter, kind, bounds, default, meaning in parameters_table(entry):
        facts = [kind, bounds, f"default {default}" if default else ""]
        console.print(f"\n-P [bold]{escape(parameter)}[/bold]  {escape(', '.join(filter(None, facts)))}")
        console.print(Padding(escape(meaning), (0, 0, 0, 4)))


@app.command()
def worker(
    gpus: Annotated[str, typer.Option(help="`all`, `none`, or a list of GPUs; starts one worker per GPU.")] = "all",
) -> None:
    """Start Celery workers on this machine for the queues `gpu` and `dagster`. Stop them with Ctrl-C."""
    from resources.executors import workers

    raise typer.Exit(workers.serve(workers.worker_commands(workers.chosen_gpus(gpus))))


@app.command(name="mlflow-backlog")
def mlflow_backlog() -> None:
    """Log to MLflow what could not be logged while it was unreachable. `materialize` also does this when it ends."""
    import dagster as dg

    from dioptra_assets.runs.tell_mlflow import tell_mlflow
    from resources.store import CellStore
    from resources.tracking.resource import Tracking

    tracking = Tracking(mlflow_tracking_uri=settings.tracking_uri(), artifact_location=settings.artifact_location())
    tracking.ask_again()
    with dg.DagsterInstance.get() as instance:
        written = tell_mlflow(tracking, CellStore(settings.store_url()), instance, console.print)
    if written.why:
        raise typer.Exit(1)
    if not written.runs:
        console.print("nothing is waiting for MLflow")


housekeeping.register(app)


def main() -> None:
    """Run the command line. An expected error is printed as one line, without a traceback."""
    from partitions.entries import ExperimentError
    from resources.claims import ClaimedError
    from resources.full_disk import NoRoomError, no_room
    from resources.store import DamagedCellError, MissingCellError, StoreError

    try:
        app()
    except Exception as error:
        kinds = (MissingCellError, DamagedCellError, StoreError, ExperimentError, ClaimedError, NoRoomError)
        if not (expected := _cause(error, kinds) or no_room(error, settings.home())):
            raise
        _complain(expected)
        sys.exit(1)


def _cause(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """The first error of the given kinds in a chain of causes. Dagster wraps errors raised while a file loads."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _say(what: str) -> None:
    console.print(what, soft_wrap=True, markup=False, highlight=False)


def _complain(what: object) -> None:
    # Printed verbatim: a wrapped line, or one that lost its [brackets] as markup, is no command to copy.
    errors.print(str(what), style="red", soft_wrap=True, markup=False, highlight=False)
