"""An experiment of 10,000 cells: loading, planning, UI, backfill and report: `python -m benchmarks.scale --help`.

One small le_net with twenty seeds, not trained, under five hundred attacks. A few hundred cells are computed, through
the daemon; the others are made up: their metric tables are those of a computed cell under other names, and all of them
are stored and reported as a computation would do it. The table is kept in results/scale.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import keep

NAME = "scale"
MODULE = "scale_project"
PROJECT = f"""
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "{MODULE}"
code_location_name = "{MODULE}"
registry_modules = ["dioptra_assets.experiment"]
"""
CODE_LOCATION = """
from pathlib import Path
import dagster as dg
from dioptra_assets.definitions import code_location

@dg.definitions
def defs():
    return code_location(Path(__file__).parent)
"""
INSTANCE = """
telemetry: {enabled: false}
nux: {enabled: false}
concurrency: {pools: {default_limit: 1, granularity: op}}
"""
LOAD = """
import json, resource, time
began = time.perf_counter()
import SCALE.definitions as d
definitions = d.defs()
keys = definitions.resolve_asset_graph().get_all_asset_keys()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.perf_counter() - began, "assets": len(keys), "memory": memory}))
"""
CELLS = ("adversarial_set", "evasion_examples", "evasion_metrics")
# What the UI asks for when it opens the graph of an experiment and the partitions of an asset.
QUERIES = {
    "the graph of the experiment": """query($group: AssetGroupSelector) { assetNodes(group: $group) {
        id assetKey { path } dependencyKeys { path } dependedByKeys { path } kinds groupName isPartitioned } }""",
    "how much of each asset is materialized": """query($group: AssetGroupSelector) { assetNodes(group: $group) {
        id partitionStats { numMaterialized numPartitions numFailed } } }""",
    "the partitions of adversarial_set": """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
        ... on AssetNode { partitionKeysByDimension { name partitionKeys } assetPartitionStatuses {
        ... on MultiPartitionStatuses { primaryDimensionName ranges { primaryDimStartKey secondaryDim {
        ... on DefaultPartitionStatuses { materializedPartitions } } } } } } } }""",
    "one cell, and whether it is stale": """query($key: AssetKeyInput!, $partition: String!) {
        assetNodeOrError(assetKey: $key) { ... on AssetNode { staleStatus(partition: $partition)
        assetMaterializations(partitions: [$partition], limit: 1) { timestamp } } } }""",
}


def main(arguments: list[str] | None = None) -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--architectures", type=int, default=20)
    parser.add_argument("--attacks", type=int, default=500)
    parser.add_argument("--backfill", type=int, default=300, help="Adversarial sets computed through the daemon.")
    parser.add_argument("--folder", help="Where the project is kept, to look at it; left out: removed at the end.")
    parser.add_argument("--pictures", help="A folder for pictures of the UI, taken with Chromium.")
    parser.add_argument("--quick", action="store_true", help="Tiny, to see that it runs; nothing is kept.")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.architectures, chosen.attacks, chosen.backfill = 2, 3, 2
    with tempfile.TemporaryDirectory() as folder:
        lines = measured(Path(chosen.folder or folder), chosen)
    count = chosen.architectures * chosen.attacks
    table = "\n".join(["| what | measured | on what |", "|---|---|---|", *lines])
    if not chosen.quick:
        keep(
            "scale", f"One experiment, {chosen.architectures} x {chosen.attacks} = {count:,} cells an asset.\n\n{table}"
        )


def measured(folder: Path, chosen: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    lines: list[str] = []

    def line(what: str, figure: str, on: str) -> None:
        lines.append(f"| {what} | {figure} | {on} |")
        print(lines[-1], flush=True)

    for few in (True, False):
        write_project(folder, 1 if few else chosen.architectures, 1 if few else chosen.attacks)
        facts = json.loads(_python(folder, LOAD.replace("SCALE", MODULE)))
        size = "of 1 cell" if few else "of all cells"
        line("definitions load", f"{facts['seconds']:.1f} s, {facts['memory']:.0f} MB", f"an experiment {size}")
    os.environ |= _environment(folder)
    sys.path.insert(0, str(folder))

    import dagster as dg

    from dioptra_assets.definitions import experiment_spec, resource_definitions
    from dioptra_assets.experiment import experiment_assets
    from dioptra_assets.runs.launch import materialize_cell
    from resources.store import Cell, CellStore

    definitions = __import__(f"{MODULE}.definitions").definitions.defs()
    store = CellStore(str(folder / "home" / "store"))
    with dg.DagsterInstance.get() as instance:
        for asset in ("testing_set", "architecture_config", "attack_config", "model", "clean_predictions"):
            seconds, cells = _timed(lambda asset=asset: _whole(definitions, asset, instance))
            line(f"`{asset}` computed", _each(seconds, cells), f"{cells} cells in one run")
        first = {"architecture": _keys(definitions, "model")[0], "attack": _keys(definitions, "attack_config")[0]}
        for asset in CELLS:
            seconds, _ = _timed(
                lambda asset=asset: materialize_cell(
                    definitions, Cell(f"{NAME}/{asset}", first), instance=instance, store=store
                )
            )
            line(f"first cell of `{asset}`", f"{seconds:.1f} s", "a run of its own, TensorFlow imported")
        for seconds, cells in [_timed(lambda: planned(definitions, instance, store))]:
            line("`materialize` finds what is missing", f"{seconds:.1f} s", f"{cells:,} cells, nearly all missing")
        with _server(folder) as server:
            if chosen.backfill:
                line(*_backfill(folder, server, definitions, instance, chosen.backfill))
            seconds, cells = _timed(lambda: made_up(definitions, instance, store))
            line("made-up cells stored and reported", _each(seconds, cells), f"{cells:,} cells")
            for what, query in QUERIES.items():
                taken = [_timed(lambda query=query: _ask(server, query, first))[0] for _ in range(3)]
                line(f"UI: {what}", f"{sorted(taken)[1]:.2f} s", "GraphQL, median of 3, all cells materialized")
            if chosen.pictures:
                for what, seconds in _pictures(server, Path(chosen.pictures)):
                    line(f"UI in Chromium: {what}", f"{seconds:.1f} s", "until it is drawn")
        for seconds, cells in [_timed(lambda: planned(definitions, instance, store))]:
            line("`materialize` finds what is stale", f"{seconds:.1f} s", f"{cells:,} cells, nearly all fresh")
        spec = replace(experiment_spec(NAME, folder / MODULE), automation=True)
        automated = dg.Definitions(experiment_assets(spec), resources=resource_definitions())
        seconds, _ = _timed(lambda: dg.evaluate_automation_conditions(automated, instance))
        line("`automation`: one look at all cells", f"{seconds:.1f} s", "the first; the daemon looks every 30 s")
        for asset in ("transfer_matrix", "security_curves", "report"):
            seconds, _ = _timed(
                lambda asset=asset: materialize_cell(
                    definitions, Cell(f"{NAME}/{asset}"), instance=instance, store=store
                )
            )
            stored = store.open(Cell(f"{NAME}/{asset}"))
            size = sum(record.size for record in stored.manifest.files.values()) / 1e6
            line(f"`{asset}`", f"{seconds:.1f} s, {size:.1f} MB", "all metric cells")
    return lines


def write_project(folder: Path, architectures: int, attacks: int) -> None:
    """A project with one experiment of so many cells, and a home."""
    package = folder / MODULE
    (package / "defs" / NAME).mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    (folder / "home" / "dagster.yaml").write_text(INSTANCE)
    (folder / "pyproject.toml").write_text(PROJECT)
    for path in (package / "__init__.py", package / "defs" / "__init__.py"):
        path.touch()
    (package / "definitions.py").write_text(CODE_LOCATION)
    attributes = {
        "data": {"source": "digits", "image_size": [16, 16], "test_fraction": 0.05},
        "architectures": {"le_net": {"epochs": 0, "seed": list(range(architectures))}},
        "attacks": {"fgm": {"eps": [round(0.3 * (number + 1) / attacks, 6) for number in range(attacks)]}},
    }
    document = {"type": "dioptra_assets.experiment.Experiment", "attributes": attributes}
    (package / "defs" / NAME / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def planned(definitions: Any, instance: Any, store: Any) -> int:
    """Ask of every cell whether it is missing or stale, as `materialize` does, and compute none."""
    from dioptra_assets.dagster_internals import partition_loading_context
    from dioptra_assets.runs.launch import cells_of, to_compute

    graph, count = definitions.resolve_asset_graph(), 0
    with partition_loading_context(dynamic_partitions_store=instance):
        for level in graph.toposorted_asset_keys_by_level:
            for key in sorted(level):
                cells = cells_of(graph, key, None)
                to_compute(graph, key, cells, instance, store)
                count += len(cells)
    return count


def made_up(definitions: Any, instance: Any, store: Any) -> int:
    """Store and report every cell that is missing, with the content of one that was computed."""
    import dagster as dg

    from dioptra_assets.assets.provenance import provenance_tags
    from partitions.keys import partition_of
    from resources.store import Cell
    from resources.tables import read_table, write_table

    count, dimensions = 0, ("architecture", "attack")
    for asset in CELLS:
        key = dg.AssetKey([NAME, asset])
        keys = _keys(definitions, asset)
        there = instance.get_materialized_partitions(key)
        last = partition_of(dimensions, keys[-1])["attack"]
        example = store.open(Cell(f"{NAME}/{asset}", partition_of(dimensions, keys[0])))
        table = read_table(example) if asset == "evasion_metrics" else None
        context: Any = _Reporting(instance, definitions.resolve_asset_graph().assets_def_for_key(key))
        tags = provenance_tags(context, key, {})
        for partition in (one for one in keys if one not in there):
            own = partition_of(dimensions, partition)
            cell = Cell(f"{NAME}/{asset}", own)
            if table is not None:
                changed = table.assign(source=own["architecture"], attack=own["attack"])
                stored = write_table(store.at(cell), changed, attributes=example.manifest.attributes)
            else:
                with store.at(cell).writer(example.manifest.kind) as writer:
                    # The report describes every set; of the examples it shows the last attack's, and reads no others.
                    whole = asset == "adversarial_set" or own["attack"] == last
                    for name in example.manifest.files if whole else ():
                        writer.put(name, example.read(name))
                    stored = writer.commit(example.manifest.data_version, example.manifest.attributes)
            version = {"dagster/data_version": stored.manifest.data_version}
            version |= {"dagster/data_version_is_user_provided": "true"}
            version |= {f"dagster/partition/{name}": value for name, value in own.items()}
            instance.report_runless_asset_event(
                dg.AssetMaterialization(key, partition=dg.MultiPartitionKey(own), tags={**tags, **version})
            )
            count += 1
    return count


class _Reporting:
    """What `provenance_tags` asks of a run."""

    def __init__(self, instance: Any, assets_def: Any):
        self.instance, self.assets_def, self.run_id = instance, assets_def, ""


def _keys(definitions: Any, asset: str) -> list[str]:
    import dagster as dg

    return list(definitions.resolve_asset_graph().get(dg.AssetKey([NAME, asset])).partitions_def.get_partition_keys())


def _whole(definitions: Any, asset: str, instance: Any) -> int:
    """Every cell of an asset in one run."""
    import dagster as dg

    from dioptra_assets.dagster_internals import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

    key = dg.AssetKey([NAME, asset])
    partitioned = definitions.resolve_asset_graph().get(key).partitions_def
    keys = _keys(definitions, asset) if partitioned else []
    tags = {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]} if keys else {}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        run_config=quiet, asset_selection=[key], instance=instance, tags=tags
    )
    return max(1, len(keys))


def _backfill(folder: Path, server: str, definitions: Any, instance: Any, count: int) -> tuple[str, str, str]:
    """A backfill asked for as the UI does it, until the daemon says that it is done."""
    keys = _keys(definitions, "adversarial_set")[1 : count + 1]
    program = str(Path(sys.executable).with_name("dagster-daemon"))
    command = [program, "run", "-m", f"{MODULE}.definitions", "-d", str(folder)]
    mutation = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
    params = {"assetSelection": [{"path": [NAME, "adversarial_set"]}], "partitionNames": keys}
    began = time.perf_counter()
    with (folder / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(command, env=os.environ, stdout=log, stderr=log)
        try:
            answer = _graphql(server, mutation, {"params": params})["launchPartitionBackfill"]
            while (found := instance.get_backfill(answer["backfillId"])).status.value not in DONE:
                assert daemon.poll() is None, f"the daemon ended, see {log.name}"
                time.sleep(1)
        finally:
            daemon.terminate()
            daemon.wait()
    seconds = time.perf_counter() - began
    assert found.status.value in DONE[:2], found
    return "backfill of `adversarial_set`", _each(seconds, len(keys)), f"{len(keys)} cells, the daemon's start included"


DONE = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """A Dagster web server on the project."""
    port = 3991
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-m", f"{MODULE}.definitions", "-d", str(folder)]
    url = f"http://127.0.0.1:{port}"
    with (folder / "webserver.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ, stdout=log, stderr=log)
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{url}/server_info", timeout=5)
                    break
                except (urllib.error.URLError, TimeoutError):
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def _ask(server: str, query: str, first: Mapping[str, str]) -> None:
    location = f"{MODULE}.definitions"
    group = {
        "groupName": NAME,
        "repositoryLocationName": location,
        "repositoryName": "__repository__",
    }
    given = {
        "group": group,
        "key": {"path": [NAME, "adversarial_set"]},
        "partition": f"{first['architecture']}|{first['attack']}",
    }
    _graphql(server, query, {name: value for name, value in given.items() if f"${name}" in query})


def _graphql(server: str, query: str, variables: Mapping[str, Any]) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{server}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found = json.load(answer)
    assert "errors" not in found, found["errors"]
    return found["data"]


def _pictures(server: str, folder: Path) -> Iterator[tuple[str, float]]:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "lineage": (f"locations/{MODULE}.definitions/asset-groups/{NAME}/lineage", "evasion_metrics"),
        "partitions": (f"assets/{NAME}/adversarial_set?view=partitions", "fgm_"),
        "overview": (f"assets/{NAME}/evasion_metrics?view=overview", "Latest"),
    }
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for name, (address, text) in pages.items():
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            began = time.perf_counter()
            page.goto(f"{server}/{address}")
            page.get_by_text(text).first.wait_for(timeout=120_000)
            yield name, time.perf_counter() - began
            page.wait_for_timeout(5000)
            page.screenshot(path=folder / f"scale_{name}.png")
            page.close()
        browser.close()


def _environment(folder: Path) -> dict[str, str]:
    return {
        "DAGSTER_HOME": str(folder / "home"),
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{folder}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _python(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env=os.environ | _environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def _each(seconds: float, cells: int) -> str:
    return f"{seconds:.1f} s, {1000 * seconds / cells:.0f} ms a cell"


if __name__ == "__main__":
    main()
