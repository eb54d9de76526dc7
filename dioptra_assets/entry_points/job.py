"""The Dagster job that runs entry points. Each computes a few cells of a dynamic experiment.

Cells are named by their configs, so running the same job twice computes nothing twice.
"""

import time
from collections.abc import Callable

import dagster as dg

from dioptra_assets.assets.keyed_configs import keep_config
from dioptra_assets.entry_points.demos import ENTRY_POINTS, entry_point
from dioptra_assets.entry_points.parsing import parse_parameters, target_of, unused
from dioptra_assets.entry_points.plan import plan
from dioptra_assets.runs.launch import CellFailedError, materialize_cell
from partitions.definitions import dynamic_dimension
from partitions.keys import CONFIG_KEY
from resources.store import Cell, StoreResource
from resources.tracking.resource import Tracking

JOB, OP = "entry_point", "run_entry_point"

# Run tags: what a job was, and its result.
ENTRY_POINT_TAG, MLFLOW_RUN_TAG, CELL_TAG = "dioptra/entry_point", "dioptra/mlflow_run_id", "dioptra/cell"

POLL_SECONDS = 1.0

# An enumeration, so that the launchpad lists them.
_ENTRY_POINTS = dg.Enum(
    "EntryPoint", [dg.EnumValue(name, description=entry.help) for name, entry in ENTRY_POINTS.items()]
)


def entry_point_job(load: Callable[[], dg.Definitions], module: str) -> dg.JobDefinition:
    """The Dagster job that runs an entry point, cell by cell, each in its own run.

    The job leads these runs in its own process, whatever executor they use. A worker that waits for other workers could
    end up waiting for itself.

    Args:
        load: returns the code location with the assets to materialize.
        module: the module that holds it.
    """

    @dg.op(
        name=OP,
        config_schema={
            "entry_point": dg.Field(_ENTRY_POINTS, description="Name of the entry point."),
            "parameters": dg.Field([str], default_value=[], description="Its parameters, each as `name=value`."),
            "depends_on": dg.Field([str], default_value=[], description="Ids of jobs that must finish first."),
        },
    )
    def run_entry_point(context: dg.OpExecutionContext, store: StoreResource, tracking: Tracking) -> None:
        config, instance = context.op_config, context.instance
        name, cells = config["entry_point"], store.cells()
        instance.add_run_tags(context.run_id, {ENTRY_POINT_TAG: name})
        _await(instance, config["depends_on"], context.log.info)
        entry = entry_point(name)
        values = parse_parameters(entry, config["parameters"])
        for sentence in unused(entry, config["parameters"]):
            context.log.info(sentence)
        experiment = target_of(entry, values).experiment
        definitions = load()
        _refuse_declared(definitions, experiment)
        for step in plan(entry, values, cells, tracking):
            cell = Cell(f"{experiment}/{step.asset}", dict(step.partition))
            if step.kept is not None:
                keep_config(cells, experiment, step.partition[CONFIG_KEY], step.kept)
            for dimension, key in step.partition.items():
                instance.add_dynamic_partitions(dynamic_dimension(experiment, dimension, step.family), [key])
            try:
                made = materialize_cell(definitions, cell, instance=instance, store=cells, module=module)
            except CellFailedError as error:
                raise dg.Failure(str(error), allow_retries=False) from error
            context.log.info(f"{cell} {'done' if made.computed else 'was up to date'}")
            if step.main:
                tags = {CELL_TAG: cell.path, MLFLOW_RUN_TAG: made.mlflow_run_id}
                instance.add_run_tags(context.run_id, {tag: value for tag, value in tags.items() if value})

    @dg.job(
        name=JOB,
        description="One entry point, as `dioptra-assets run` and `submit_job` run it.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        run_entry_point()

    return job


def _await(instance: dg.DagsterInstance, jobs: list[str], log: Callable[[str], None]) -> None:
    for job in jobs:
        while True:
            run = instance.get_run_by_id(job)
            if run is None:
                raise dg.Failure(f"depends_on: there is no job {job!r}", allow_retries=False)
            if run.is_finished:
                break
            log(f"waiting for job {job} ({run.status.value})")
            time.sleep(POLL_SECONDS)
        if run.status != dg.DagsterRunStatus.SUCCESS:
            raise dg.Failure(f"depends_on: job {job} ended as {run.status.value}", allow_retries=False)


def _refuse_declared(definitions: dg.Definitions, experiment: str) -> None:
    graph = definitions.resolve_asset_graph()
    dynamic = sorted({key.path[0] for key in graph.get_all_asset_keys() if key.path[1:] == ["predictions"]})
    if experiment not in dynamic:
        raise dg.Failure(
            f"experiment {experiment!r} declares its cells: run `dioptra-assets materialize {experiment}`;"
            f" experiments available to jobs: {', '.join(dynamic)}",
            allow_retries=False,
        )
