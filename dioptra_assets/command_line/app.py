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
    from dioptra_assets.entry_points.model import EntryPoint

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"dioptra-assets {version('dioptra-assets')}", highlight=False)
        raise typer.Exit


@app.callback()
def _settings(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which this is.")] = False,
) -> None:
    """Adversarial robustness of image classifiers, as a graph of Dagster assets."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


Experiment = Annotated[
    str, typer.Argument(help="Name of an experiment, e.g. digits.", autocompletion=completion.experiments)
]


@app.command()
def materialize(
    experiment: Experiment,
    asset: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this asset and what it is made from, e.g. model; `model+`: and what is made from it.",
            autocompletion=completion.assets,
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these cells and what they are made from, e.g. 'le_net|fgm_0.3'; `*` stands for anything.",
            autocompletion=completion.cells,
        ),
    ] = None,
) -> None:
    """Compute every cell of an experiment that is missing or stale, in this process, and write its report anew."""
    if _materialized(experiment, asset or (), cell or ()):
        _write_report(experiment, None)


def _materialized(experiment: str, assets: Sequence[str] = (), cells: Sequence[str] = ()) -> bool:
    """Compute what is missing or stale, and say how it went. Gives whether the report was made anew."""
    with showing(console):
        # Here, since they take seconds of which the display says something.
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
    for one, why in launched.failed.items():
        failed.setdefault(why, []).append(str(one))
    for why, several in failed.items():
        _complain(f"{', '.join(several)} failed: {why}")
    if launched.skipped:
        _complain(f"{len(launched.skipped)} cells not tried, since what they are made from failed")
    if launched.failed:
        raise typer.Exit(1)
    return any(one.asset == f"{experiment}/report" for one in launched.computed)


@app.command()
def demo() -> None:
    """Run the experiment `digits` from its data to its report, and say where everything is."""
    _say("Handwritten digits: training two models, attacking each, evaluating both on every adversarial set.")
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
            help="Name of an experiment: its assets and their cells.", autocompletion=completion.experiments
        ),
    ] = None,
    every_cell: Annotated[bool, typer.Option("--cells", help="Every cell with its state, a line each.")] = False,
) -> None:
    """List the experiments, or the assets of one: how many cells each has, and how many are up to date."""
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
        wrong = any(one.mistake for one in assets if one.asset.partition("/")[0] == name)
        table.add_row(escape(name), *(["[red]broken[/red]"] if wrong else [str(sum(states.values())), *counts]))
    console.print(table)
    for asset in assets:
        if asset.mistake:
            _complain(asset.mistake)


@app.command()
def check(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Name of an experiment; all where it is left out.", autocompletion=completion.experiments),
    ] = None,
) -> None:
    """Check experiment files: a sentence for each mistake, and 1 at the end where there is one."""
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
    _say(f"{experiment or 'all experiments'}: no mistake was found")


@app.command()
def claim(experiment: Experiment) -> None:
    """Make an experiment that is in the store this checkout's, where another had computed it from another file."""
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
    with suppress(claims.ClaimedError):  # a file that cannot be read any more is what this command mends
        before = claims.claim_of(store, experiment)
    claims.claim(store, experiment, spec.folder, spec.digest)
    of_others = f", and was that of {before.owner} ({before.user} on {before.host})" if before else ""
    _say(f"{experiment} in {store.url} belongs to {claims.own_claim(store, spec.folder, '').owner}{of_others}")


@app.command()
def transfer(experiment: Experiment) -> None:
    """Print the transfer matrix of an experiment: every model on the images made on every model."""
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
        str | None, typer.Option(help="NAME@VERSION of a registered model, to judge that one alone.")
    ] = None,
) -> None:
    """Hold the stored numbers of an experiment, and of the registered models it has met, against its gates.

    Ends with 0 where all of them hold, with 1 where one that blocks does not, with 3 where one could not be judged:
    numbers are missing, stale, or failed their sanity checks. With 2 where there is nothing to judge.
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
        _complain(f"experiment {experiment!r} has no gates for this: write some under `gates` in its file")
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
    """Say what became of the registered versions: passed, failed, not judged (why), or waiting (next try at).

    Ends with 1 where one failed, with 3 where one was not judged or waits, and with 2 where none was seen.
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
    output: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Write the report of an experiment to an HTML file."""
    from dioptra_assets.command_line import overview
    from dioptra_assets.runs.launch import UnknownExperimentError

    _write_report(experiment, output)
    with suppress(UnknownExperimentError):  # kept of an experiment whose file is gone
        states = {path: state for one in overview.assets(experiment) for path, state in one.states.items()}
        if states.get(f"{experiment}/report") == "stale":
            _complain(
                f"{experiment} was changed since: `dioptra-assets materialize {experiment}` makes the report anew"
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
            metavar="ENTRY_POINT", help="For example train, fgm or miface.", autocompletion=completion.entry_points
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-P", help="One parameter, name=value.", autocompletion=completion.parameters),
    ] = None,
    depends_on: Annotated[list[str] | None, typer.Option(help="Id of a job that must have finished.")] = None,
    help_wanted: Annotated[bool, typer.Option("--help", help="Show the parameters of the entry point.")] = False,
) -> None:
    """Run one entry point in the workbench; parameters that do not exist are refused with those that do."""
    from dioptra_assets.api.submission import ServerError, submit_job
    from dioptra_assets.entry_points.demos import ENTRY_POINTS, entry_point
    from dioptra_assets.entry_points.model import EntryPointError

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
def show_job(job_id: Annotated[str, typer.Argument(metavar="ID", help="As `run` printed it.")]) -> None:
    """Say what became of a job: queued, started, finished or failed."""
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
    gpus: Annotated[str, typer.Option(help="`all`, `none`, or which: one worker for each.")] = "all",
) -> None:
    """Start the Celery workers of this machine, for the queues `gpu` and `dagster`; Ctrl-C ends them."""
    from resources.executors import workers

    raise typer.Exit(workers.serve(workers.worker_commands(workers.chosen_gpus(gpus))))


@app.command(name="mlflow-backlog")
def mlflow_backlog() -> None:
    """Tell MLflow what it could not be told while it was away; `materialize` does so at its end."""
    import dagster as dg

    from dioptra_assets.runs.backlog import tell_mlflow
    from resources.store import CellStore
    from resources.tracking.resource import Tracking

    tracking = Tracking(mlflow_tracking_uri=settings.tracking_uri(), artifact_location=settings.artifact_location())
    tracking.ask_again()
    with dg.DagsterInstance.get() as instance:
        written = tell_mlflow(tracking, CellStore(settings.store_url()), instance, console.print)
    if written.why:
        raise typer.Exit(1)
    if not written.runs:
        console.print("nothing waits for MLflow")


housekeeping.register(app)


def main() -> None:
    """The entry point: an expected failure is one line, not a traceback."""
    from partitions.entries import ExperimentError
    from resources.claims import ClaimedError
    from resources.room import NoRoomError, no_room
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
    """The first of some kinds among an error and its causes: Dagster wraps what goes wrong while it loads a file."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _say(what: str) -> None:
    console.print(what, soft_wrap=True, markup=False, highlight=False)


def _complain(what: object) -> None:
    # As it is: a line that was folded, or lost what stands in brackets, holds no command to copy.
    errors.print(str(what), style="red", soft_wrap=True, markup=False, highlight=False)
