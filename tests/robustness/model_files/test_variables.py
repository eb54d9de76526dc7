"""Models are loaded without copies of their weights side by side, and get the weights that were saved."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from dioptra_assets.robustness.model_files import variables
from dioptra_assets.robustness.model_files.files import load_model, save_model, weights_digest
from dioptra_assets.robustness.model_files.variables import parts
from tests.conftest import ROOT

SIDE = 5_000
WEIGHTS = 4 * SIDE * SIDE
MEASURE = """
import json, sys
from pathlib import Path
import keras
from dioptra_assets.robustness.model_files.files import load_model, weights_digest

def resident(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = resident("VmRSS")
    done = work()
    return done, resident("VmHWM") - before, resident("VmRSS") - before

keras.ops.zeros(1)
model, loading, loaded = peak(lambda: load_model(sys.argv[1]))
print(json.dumps([loading, loaded, peak(lambda: weights_digest(model))[1]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_layer_is_loaded_beside_one_copy_and_its_digest_taken_beside_none(tmp_path: Path) -> None:
    path = tmp_path / "wide.keras"
    save_model(keras.Sequential([keras.Input((SIDE,)), layers.Dense(SIDE, kernel_initializer="ones")]), path)
    said = subprocess.run([sys.executable, "-c", MEASURE, path], cwd=ROOT, capture_output=True, text=True, check=True)
    loading, loaded, digest = (taken / WEIGHTS for taken in json.loads(said.stdout.splitlines()[-1]))
    assert 1.5 < loading < 2.5
    assert 0.9 < loaded < 1.5
    assert digest < 0.5


def model() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(5, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_large_layers_are_those_that_were_saved_and_can_be_trained(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = model(), tmp_path / f"model{suffix}"
    made.save(path)
    digest = weights_digest(made)
    monkeypatch.setattr(variables, "LARGE", 2)
    loaded: Any = load_model(path)
    assert weights_digest(loaded) == weights_digest(made) == digest
    images, labels = np.random.default_rng(0).random((6, 8, 8, 1), np.float32), np.arange(6) % 3
    for each in (made, loaded):
        keras.utils.set_random_seed(1)
        each.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        each.fit(images, labels, epochs=2, verbose=0)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), made.predict(images, verbose=0), atol=1e-6)
    assert weights_digest(loaded) != digest


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_large_layers_of_other_numbers_are_made_those_of_the_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    made.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        weights: Any = file["model_weights"]
        found: list[str] = []
        weights.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
        assert len(found) == len(made.weights)
        for name in found:
            value = np.asarray(weights[name])
            del weights[name]
            weights[name] = value.astype(kind)
    monkeypatch.setattr(variables, "LARGE", 2)
    loaded: Any = load_model(tmp_path / "model.h5")
    for mine, theirs in zip(loaded.weights, made.weights, strict=True):
        assert mine.dtype == "float32"
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=0.01)


@pytest.mark.parametrize("shape", [(), (3,), (0, 5), (7, 2), (1, 9), (5, 3, 2)])
def test_parts_cover_an_array_in_order(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "LARGE", 5)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    cut = [array[part] for part in parts(shape)]
    assert b"".join(part.tobytes() for part in cut) == array.tobytes()
    assert all(part.size <= 5 or len(part) == 1 for part in cut)
