"""A wrong experiment file is refused as a whole when the code location loads, in a sentence that says what to write."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dioptra_assets.broken_experiments import mistakes
from dioptra_assets.housekeeping import rubbish
from partitions.entries import ExperimentError
from tests.conftest import EXPERIMENT, Lab, skeleton

pytestmark = pytest.mark.quick

ATTACK = "experiment 'tiny', attacks entry 'fgm', field"


@pytest.fixture
def project(tmp_path: Path) -> Lab:
    return skeleton(tmp_path / "project")


def refusal(project: Lab) -> tuple[str, str]:
    """What is wrong with the one experiment of a project, and how the UI shows the asset that stands in its place."""
    graph = project.defs().resolve_asset_graph()
    (key,) = graph.get_all_asset_keys()
    (sentence,) = mistakes(graph).values()
    return sentence, graph.get(key).description or ""


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown field": (
        {"atacks": {}},
        ["experiment 'tiny', field 'atacks': there is no such field, available:", "attacks", "architectures"],
    ),
    "unknown field of an attack": (
        {"attacks": {"fgm": {"epsilon": 0.1, "eps": 0.1}}},
        [ATTACK, "'epsilon'", "eps_step"],
    ),
    "eps below zero": ({"attacks": {"fgm": {"eps": -1}}}, [f"{ATTACK} 'eps'", "-1", "greater than 0"]),
    "one wrong eps of a sweep": ({"attacks": {"fgm": {"eps": [0.1, -1]}}}, [f"{ATTACK} 'eps'", "-1", "greater than 0"]),
    "norm 3": ({"attacks": {"fgm": {"eps": 0.1, "norm": 3}}}, [f"{ATTACK} 'norm'", "3", "inf, 1 and 2"]),
    "unknown attack": (
        {"attacks": {"fgmm": {"eps": 0.1}}},
        ["experiment 'tiny', attacks entry 'fgmm', field 'method': 'fgmm' is not allowed, it must be"],
    ),
    "unknown architecture": (
        {"architectures": {"lenet": {}}},
        ["experiment 'tiny', architectures entry 'lenet'", "'architecture'", "must be one of", "le_net"],
    ),
    "an image size that an architecture cannot take": (
        {"architectures": {"alex_net": {}}},
        ["experiment 'tiny', architectures entry 'alex_net'", "alex_net", "16"],
    ),
    "a key with a bar": (
        {"attacks": {"a|b": {"method": "fgm", "eps": 0.1}}},
        ["experiment 'tiny', attacks entry 'a|b'", "not allowed as a partition key", "A-Z a-z 0-9 _ . @ = -"],
    ),
    "a key with three dots, which part a range": (
        {"attacks": {"a...b": {"method": "fgm", "eps": 0.1}}},
        ["experiment 'tiny', attacks entry 'a...b'", "not allowed as a partition key"],
    ),
    "a sweep that gives a name twice": (
        {"attacks": {"fgm": {"eps": [0.1, 0.1]}}},
        ["experiment 'tiny', attacks entry 'fgm'", "'fgm_0.1' is given twice"],
    ),
    "an entry and a sweep of one name": (
        {"attacks": {"fgm": {"eps": [0.1]}, "fgm_0.1": {"method": "fgm", "eps": 0.1}}},
        ["'fgm_0.1' is given twice"],
    ),
    "an owner who cannot be reached": ({"owners": ["bob"]}, ["experiment 'tiny', field 'owners", "'bob'", "team:"]),
    "unknown data source": ({"data": {"source": "mnits"}}, ["experiment 'tiny', field 'data", "mnits", "mnist"]),
    "no architecture": ({"architectures": {}}, ["experiment 'tiny', field 'architectures'"]),
    "a target class that there is not": (
        {"attacks": {"fgm": {"eps": 0.1, "targeted": True, "target_class": 10}}},
        ["experiment 'tiny', attacks entry 'fgm'", "target_class", "10", "0 to 9"],
    ),
    "unknown defence": (
        {"defences": {"blur": {}}},
        ["experiment 'tiny', defences entry 'blur', field 'method': 'blur' is not allowed", "spatial_smoothing"],
    ),
    "unknown field of a defence": (
        {"defences": {"jpeg_compression": {"qualty": 50}}},
        ["experiment 'tiny', defences entry 'jpeg_compression', field 'qualty': there is no such field", "quality"],
    ),
    "a defence that defends nothing": (
        {"defences": {"jpeg_compression": {"apply_fit": False, "apply_predict": False}}},
        ["defences entry 'jpeg_compression': apply_fit and apply_predict are both false", "set one"],
    ),
    "a sweep that gives a defence a name with a dot": (
        {"defences": {"gaussian_augmentation": {"sigma": [0.1, 0.2]}}},
        ["defences entry 'gaussian_augmentation_0.1': the name", "A-Z a-z 0-9 _", "an entry of its own"],
    ),
    "a defence that is called none": (
        {"defences": {"none": {"method": "jpeg_compression"}}},
        ["experiment 'tiny', defences entry 'none'", "is not 'none'"],
    ),
    "no draw of a random defence": ({"eot_samples": 0}, ["experiment 'tiny', field 'eot_samples'", "0", "1"]),
    "unknown answer to a failed check": (
        {"sanity": "stop"},
        ["experiment 'tiny', field 'sanity': 'stop' is not allowed, it must be 'warn' or 'block'"],
    ),
    "unknown poisoning": (
        {"poisonings": {"badnet": {"target_class": 0, "poison_fraction": 0.1}}},
        ["experiment 'tiny', poisonings entry 'badnet', field 'method': 'badnet' is not allowed", "baseline"],
    ),
    "an evasion attack among the poisonings": (
        {"poisonings": {"fgm": {"eps": 0.1}}},
        ["poisonings entry 'fgm', field 'method': 'fgm' is not allowed"],
    ),
    "a target class of a poisoning that there is not": (
        {"poisonings": {"baseline": {"target_class": 10, "poison_fraction": 0.1}}},
        ["experiment 'tiny', poisonings entry 'baseline'", "target_class", "10"],
    ),
    "a trigger that does not lie in the images": (
        {"poisonings": {"baseline": {"target_class": 0, "poison_fraction": 0.1, "trigger": {"size": 17}}}},
        ["experiment 'tiny', poisonings entry 'baseline'", "17", "16"],
    ),
    "a proxy model that is not declared": (
        {"poisonings": {"clean_label": {"target_class": 0, "poison_fraction": 0.1, "proxy_architecture": "alex_net"}}},
        ["poisonings entry 'clean_label'", "'proxy_architecture': 'alex_net' is not allowed", "shallow_net", "le_net"],
    ),
    "unknown inversion": (
        {"inversions": {"miface2": {}}},
        ["experiment 'tiny', inversions entry 'miface2', field 'method': 'miface2' is not allowed", "miface"],
    ),
    "a class to invert that there is not": (
        {"inversions": {"miface": {"classes": "10"}}},
        ["experiment 'tiny', inversions entry 'miface'", "classes"],
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_file_is_refused_in_a_sentence(project: Lab, mistake: str) -> None:
    changes, parts = WRONG[mistake]
    project.write({**EXPERIMENT, **changes})
    sentence, shown = refusal(project)
    for part in parts:
        assert part in sentence, sentence
    assert "\n" not in sentence, "one mistake, one line"
    assert sentence in re.sub(r"\\(.)", r"\1", shown), "the UI shows it"


def test_a_name_given_twice_in_the_yaml_is_refused_with_its_line(project: Lab) -> None:
    path = project.write(EXPERIMENT)
    lines = path.read_text().splitlines()
    number = lines.index("  attacks:")
    project.write_text("\n".join([*lines[: number + 1], "    weak: {method: fgm, eps: 0.2}", *lines[number + 1 :]]))
    second = 2 + max(n for n, line in enumerate(lines) if line.strip().startswith("weak:"))
    sentence, _ = refusal(project)
    assert sentence == (
        f"experiment 'tiny': the name 'weak' is given twice in defs.yaml, again in line {second}; each entry and field"
        " needs a name of its own"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("attributes:\n\tseed: 1\n", "a tab is not allowed here"),
        ("attributes: !!python/object/apply:os.system ['exit 1']\n", "the tag '!!python/object/apply:os.system'"),
        (
            "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)),
            "the file stands for more than 50,000 values",
        ),
    ],
)
def test_dagster_is_not_given_a_file_that_is_no_plain_yaml(project: Lab, text: str, fault: str) -> None:
    project.write_text(text)
    begun = time.perf_counter()
    sentence, _ = refusal(project)
    assert time.perf_counter() - begun < 5, "the code location itself loads in two"
    assert fault in sentence
    assert "\n" not in sentence


def test_every_mistake_is_said_at_once(project: Lab) -> None:
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1, "norm": 3, "batch_size": 0}}})
    sentence, _ = refusal(project)
    for field in ("eps", "norm", "batch_size"):
        assert f"{ATTACK} {field!r}" in sentence


@pytest.mark.parametrize("name", ["my-experiment", "my.experiment", "a=1"])
def test_a_name_that_dagster_cannot_group_by_is_refused(project: Lab, name: str) -> None:
    project.write(EXPERIMENT, name)
    sentence, _ = refusal(project)
    assert sentence == (
        f"experiment {name!r}: the name of its folder is not allowed, it takes 1 to 100 of A-Z a-z 0-9 _"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("type: dioptra_assets.experiment.Experimet\nattributes: {}\n", "has no attribute `Experimet`"),
        (
            "type: dioptra_assets.experiment.Experiment\nattributes: {}\nseed: 1\n",
            "seed in line 3: Extra inputs are not permitted",
        ),
        ("hello\n", "Input should be an object"),
        ("", "No components found"),
        ("type: dioptra_assets.experiment.Experiment\n", "field 'data': a value is required"),
    ],
)
def test_a_file_that_dagster_itself_does_not_take_is_one_sentence_too(project: Lab, text: str, fault: str) -> None:
    project.write_text(text)
    sentence, _ = refusal(project)
    assert sentence.startswith("experiment 'tiny', ")
    assert fault in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("text", ["attributes:\n\tseed: 1\n", "type: nothing.Such\n", None])
def test_a_mistake_in_one_file_leaves_the_others_as_they_are(project: Lab, text: str | None) -> None:
    sound = {**EXPERIMENT, "owners": ["team:sound"]}
    project.write(sound, "sound")
    alone = project.defs().resolve_asset_graph()
    if text is None:
        project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    else:
        project.write_text(text)
    graph = project.defs().resolve_asset_graph()
    assert list(mistakes(graph)) == ["tiny"]
    assert graph.get_all_asset_keys() == alone.get_all_asset_keys() | {dg.AssetKey(["tiny", "not_loaded"])}
    assert {key: graph.get(key).code_version for key in alone.get_all_asset_keys()} == {
        key: alone.get(key).code_version for key in alone.get_all_asset_keys()
    }
    assert graph.get(dg.AssetKey(["tiny", "not_loaded"])).group_name == "tiny"


def test_code_of_the_project_stands_beside_a_broken_experiment(project: Lab) -> None:
    (project.folder / project.module / "defs" / "own.py").write_text(
        "import dagster as dg\n\n\n@dg.asset\ndef mine() -> None: ...\n"
    )
    (project.folder / project.module / "defs" / "wrong.py").write_text("nonsense\n")
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    graph = project.defs().resolve_asset_graph()
    assert dg.AssetKey("mine") in graph.get_all_asset_keys()
    assert mistakes(graph)["wrong.py"] == "defs/wrong.py: NameError: name 'nonsense' is not defined"


def test_what_a_broken_file_says_is_shown_as_text(project: Lab) -> None:
    project.write({**EXPERIMENT, "data": {"source": "<b>*digits*</b>"}})
    sentence, shown = refusal(project)
    assert "'<b>*digits*</b>' is not allowed" in sentence
    assert "'\\<b>\\*digits\\*\\</b>' is not allowed" in shown


def test_computing_the_broken_experiment_says_its_sentence(blank: Lab) -> None:
    blank.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    with pytest.raises(ExperimentError, match="'eps': -1 is not allowed"):
        blank.materialize()


def test_cells_of_a_broken_experiment_are_not_taken_for_those_of_removed_entries(project: Lab) -> None:
    project.write(EXPERIMENT, "sound")
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    graph = project.defs().resolve_asset_graph()
    assert {asset.partition("/")[0] for asset in rubbish.declared_cells(graph)} == {"sound"}
    with pytest.raises(ExperimentError, match="'eps': -1 is not allowed"):
        rubbish.declared_cells(graph, "tiny")


@pytest.mark.heavy
def test_dg_check_defs_shows_the_sentence(project: Lab) -> None:
    project.write(EXPERIMENT, "sound")
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    done = subprocess.run(
        [Path(sys.executable).with_name("dg"), "check", "defs"],
        cwd=project.folder,
        env={**os.environ, "DAGSTER_HOME": str(project.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    expected = f"{ATTACK} 'eps': -1 is not allowed, it must be greater than 0"
    lines = (done.stdout + done.stderr).splitlines()
    assert next(number for number, line in enumerate(lines) if expected in line) < 5, "before all else that dg says"


def test_several_experiments_stand_side_by_side(project: Lab) -> None:
    project.write(EXPERIMENT, "one")
    project.write({**EXPERIMENT, "attacks": {}}, "two")
    graph = project.defs().resolve_asset_graph()
    groups = {key.path[0]: graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert groups == {"one": "one", "two": "two"}
    without_attacks = {key.path[1] for key in graph.get_all_asset_keys() if key.path[0] == "two"}
    assert without_attacks == {
        "training_set",
        "testing_set",
        "architecture_config",
        "model",
        "clean_predictions",
        "report",
    }


def test_a_sweep_becomes_one_partition_for_each_value(project: Lab) -> None:
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": [0.05, 0.1], "norm": ["inf", 2]}}})
    definition = project.defs().resolve_asset_graph().get(dg.AssetKey(["tiny", "attack_config"])).partitions_def
    assert definition
    assert definition.get_partition_keys() == ["fgm_0.05_inf", "fgm_0.05_2", "fgm_0.1_inf", "fgm_0.1_2"]


def test_owners_and_description_of_the_file_are_shown(project: Lab) -> None:
    project.write(EXPERIMENT)
    graph = project.defs().resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert list(node.owners) == ["team:tests"]
        assert node.description, key
