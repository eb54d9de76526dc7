"""What gates conclude of registered versions: a good one, a worse one, masked ones, as assets and by the command."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dioptra_assets as da
from dioptra_assets.robustness.evaluation.gates import GATE_COLUMNS
from dioptra_assets.runs.launch import failure_reason
from resources.tables import read_table
from tests.assets.test_gates import asked, of_lab
from tests.conftest import EXPERIMENT, Lab
from tests.registry import register

AT_LEAST = "robust_accuracy >= 0.6"
LAST = "robust_accuracy no worse than last"
BEST = "robust_accuracy no worse than best by 0.02"
CHAMPION = "robust_accuracy no worse than @champion by 0.02"
FILE = {
    **EXPERIMENT,
    "data": {"source": "digits", "image_size": [16, 16], "test_fraction": 0.3},
    "attacks": {"fgm": {"eps": 0.05}},
    "watch": {"name": "team*"},
    "gates": [AT_LEAST, LAST, BEST, {"rule": CHAMPION, "severity": "warn"}],
}
BRANCH = ("model", "clean_predictions", "adversarial_set", "evasion_examples", "evasion_metrics", "model_sanity")


Weights = tuple[np.ndarray, np.ndarray]


def linear(training_set: Any) -> Weights:
    """Weights and biases of a linear classifier, fitted by least squares: the same on every machine, in no time."""
    images, labels = training_set.to_numpy()
    pixels = images.reshape(len(images), -1).astype(np.float64)
    centred, wanted = pixels - pixels.mean(axis=0), np.eye(10)[labels] - 0.1
    weights = 20 * np.linalg.solve(centred.T @ centred + 10 * np.eye(pixels.shape[1]), centred.T @ wanted)
    return weights.astype(np.float32), (-pixels.mean(axis=0) @ weights).astype(np.float32)


def worse(weights: np.ndarray, biases: np.ndarray) -> Weights:
    noise = np.random.default_rng(3).normal(0, 2 * weights.std(), weights.shape)
    return weights + noise.astype(np.float32), biases


def model_file(folder: Path, weights: np.ndarray, biases: np.ndarray, scale: float = 1) -> Path:
    model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.layers[-1].set_weights([weights * scale, biases * scale])
    path = folder / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def watching(blank: Lab) -> Lab:
    blank.write(FILE)
    for asset, *partition in (("training_set",), ("testing_set",), ("attack_config", "fgm")):
        assert blank.run(asset, *partition).success
    return blank


def attack(lab: Lab, *versions: str) -> None:
    """Everything of the branch for some versions, in one run an asset, as a backfill does."""
    with lab.instance() as instance:
        instance.add_dynamic_partitions("tiny_registered_model", list(versions))
    ends = versions if len(versions) == 1 else (versions[0], versions[-1])
    for asset in BRANCH:
        by_attack = asset not in ("model", "clean_predictions", "model_sanity")
        result = lab.run(f"registered_model/{asset}", *(f"{key}|fgm" if by_attack else key for key in ends))
        assert result.success, f"{asset}: {failure_reason(result)}"
    lab.run("registered_model/evasion_gate", *(f"{key}|fgm" for key in ends))


def statuses(lab: Lab, version: str) -> dict[str, str]:
    table = of_lab(lab, lambda: da.gates("tiny", version))
    assert list(table.columns) == list(GATE_COLUMNS)
    return dict(zip(table["rule"], table["status"], strict=True))


def kept(lab: Lab, version: str) -> bool:
    """Whether the gate of a version let it pass: what blocks is not materialized."""
    return lab.find("registered_model/evasion_gate", architecture=version, attack="fgm") is not None


def test_a_worse_version_fails_a_masked_one_is_not_judged_and_an_honest_one_passes(
    watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    honest = linear(da.load("tiny/training_set"))
    for weights, scale in ((honest, 1), (worse(*honest), 1), (honest, 1000), (honest, 1), (honest, 3)):
        register(watching, model_file(tmp_path, *weights, scale), "team")
    client = MlflowClient(f"sqlite:///{watching.home}/mlflow/mlflow.db")
    client.set_registered_model_alias("team", "champion", "1")
    attack(watching, *(f"team@{number}" for number in range(1, 6)))

    rows = of_lab(watching, lambda: da.gates("tiny")).set_index(["architecture", "rule"])
    own = {rule: rows.loc[("le_net", rule), "status"] for rule in (AT_LEAST, LAST, BEST)}
    assert own == dict.fromkeys((AT_LEAST, LAST, BEST), "not judged"), "the experiment's own model was never made"
    value = {number: rows.loc[(f"team@{number}", AT_LEAST), "value"] for number in (1, 2, 3, 5)}
    assert value[2] < 0.2 and value[3] > 0.9 and value[5] > value[1] + 0.05 and 0.6 <= value[1] < 0.65

    assert set(statuses(watching, "team@1").values()) == {"passed"}
    assert set(statuses(watching, "team@2").values()) == {"failed"}
    assert set(statuses(watching, "team@3").values()) == {"not judged"}
    assert set(statuses(watching, "team@4").values()) == {"passed"}
    assert {f"team@{n}": kept(watching, f"team@{n}") for n in (1, 2, 3, 4)} == {
        "team@1": True,
        "team@2": False,
        "team@3": False,
        "team@4": True,
    }
    # The worse one and the masked one between them set no limit.
    assert rows.loc[("team@4", LAST), "against"].startswith("team@1, ")
    assert "on the same 540 images, 0 lost and 0 won" in rows.loc[("team@4", LAST), "against"]
    assert rows.loc[("team@4", BEST), "against"].startswith("team@1, ")
    assert rows.loc[("team@4", CHAMPION), "against"].startswith("team@1 (@champion), ")
    assert rows.loc[("team@2", LAST), "limit"] == pytest.approx(value[1], abs=0.05)
    assert "gradients_are_there" in rows.loc[("team@3", AT_LEAST), "why"]
    stored = read_table(watching.find("registered_model/evasion_gate", architecture="team@4", attack="fgm"))
    assert list(stored["status"]) == ["passed"] * 4

    codes = {n: asked(watching, monkeypatch, "--version", f"team@{n}").exit_code for n in (1, 2, 3, 4)}
    assert codes == {1: 0, 2: 1, 3: 3, 4: 0}
    result = asked(watching, monkeypatch, "--version", "team@3")
    assert f"not judged  team@3 fgm: gate `{AT_LEAST}` is not judged: robust_accuracy" in result.output
    assert asked(watching, monkeypatch).exit_code == 1

    # Masked a little: no gradient is zero, and the accuracy is too high all the same.
    assert set(statuses(watching, "team@5").values()) == {"not judged"} and not kept(watching, "team@5")
    why = rows.loc[("team@5", AT_LEAST), "why"]
    assert "the_loss_hides_nothing" in why and "gradients_are_there" not in why

    # A champion that is not there, or was never attacked here, decides nothing.
    client.delete_registered_model_alias("team", "champion")
    assert statuses(watching, "team@4")[CHAMPION] == "not judged"
    assert "no version of team has the alias 'champion'" in asked(watching, monkeypatch, "--version", "team@4").output


def test_a_version_waits_for_the_one_before_it(watching: Lab, tmp_path: Path) -> None:
    honest = linear(da.load("tiny/training_set"))
    for _ in range(2):
        register(watching, model_file(tmp_path, *honest), "team")
    with watching.instance() as instance:
        instance.add_dynamic_partitions("tiny_registered_model", ["team@1"])
    assert watching.run("registered_model/model", "team@1").success
    attack(watching, "team@2")
    row = of_lab(watching, lambda: da.gates("tiny", "team@2")).set_index("rule").loc[LAST]
    assert row["status"] == "not judged" and "team@1, a version before it, has not been judged yet" in row["why"]
    attack(watching, "team@1")
    assert statuses(watching, "team@2")[LAST] == "passed"
