"""Experiments that train nothing: models as they come, on images to evaluate on alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dioptra_assets.robustness.training.architectures import build
from partitions.experiments import parse_experiment
from resources.image_store import read_image_set
from resources.models import read_model
from resources.tables import read_table
from tests.conftest import EXPERIMENT, Lab

CLASSES = ("bird", "cat", "dog")
SHAPE = (32, 32, 3)


def _experiment(weights: Path | None = None) -> dict[str, Any]:
    """No training images, a share of them to be held out all the same, one attack and one defence."""
    recipe = {"epochs": 0, "validation_split": 0.2}
    return {
        "data": {"source": "image_folder", "directory": "photographs", "image_size": SHAPE[:2]},
        "architectures": {"shallow_net": recipe | ({"weights": str(weights)} if weights else {})},
        "attacks": {"fgm": {"eps": 0.1}},
        "defences": {"smoothing": {"method": "spatial_smoothing", "window_size": 3}},
    }


@pytest.fixture
def pretrained(blank: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment on six pictures found by the variable; the file of the weights that it starts from."""
    generator = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "data/photographs/testing" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, SHAPE, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.setenv("DIOPTRA_ASSETS_DATA", str(tmp_path / "data"))
    path = tmp_path / "pretrained.weights.h5"
    model = build("shallow_net", SHAPE, len(CLASSES))
    model.set_weights([generator.normal(0, 0.1, array.shape) for array in model.get_weights()])
    model.save_weights(path)
    blank.write(_experiment(path))
    return path


def test_a_pretrained_model_is_attacked_and_reported_without_training_images(blank: Lab, pretrained: Path) -> None:
    launched = blank.materialize()
    assert not launched.failed
    assert not launched.skipped
    assets = {cell.asset.removeprefix("tiny/") for cell in launched.computed}
    assert "training_set" not in assets
    expected = {
        "testing_set",
        "model",
        "clean_predictions",
        "adversarial_set",
        "evasion_metrics",
        "defended_set/smoothing",
        "adaptive_set/smoothing",
        "defence_comparison",
        "sanity",
        "report",
    }
    assert expected <= assets
    assert set(blank.statuses().values()) == {"FRESH"}
    model = blank.find("model", architecture="shallow_net")
    facts = model.manifest.attributes
    assert facts["image_shape"] == list(SHAPE)
    assert facts["class_names"] == list(CLASSES)
    assert (facts["epochs"], facts["training_images"], facts["validation_images"]) == (0, 0, 0)
    # The model is the pretrained one, and all six images went through it.
    given = build("shallow_net", SHAPE, len(CLASSES))
    given.load_weights(pretrained)
    images, _ = read_image_set(blank.find("testing_set")).to_numpy()
    np.testing.assert_allclose(read_model(model)(images), given(images), atol=1e-5)
    predictions = read_table(blank.find("clean_predictions", architecture="shallow_net"))
    assert len(predictions) == 6
    np.testing.assert_array_equal(predictions["prediction"], np.asarray(given(images)).argmax(axis=1))
    report = blank.find("report")
    page = report.read("report.html").decode()
    assert "testing_set" in page
    assert "training_set" not in page
    (event,) = blank.events("report")
    assert event.asset_materialization is not None
    assert "missing cells" not in event.asset_materialization.metadata


@pytest.mark.parametrize(
    ("change", "trains"),
    [
        ({}, False),
        ({"architectures": {"shallow_net": {"epochs": 0}, "le_net": {"epochs": 0}}}, False),
        ({"architectures": {"shallow_net": {"epochs": 0}, "le_net": {"epochs": 0.5}}}, True),
        ({"poisonings": {"baseline": {"target_class": 1, "poison_fraction": 0.1}}}, True),
        ({"inversions": {"miface": {"max_iter": 5}}}, True),
        ({"defences": {"jpeg": {"method": "jpeg_compression", "quality": 50}}}, False),
        ({"defences": {"jpeg": {"method": "jpeg_compression", "quality": 50, "apply_fit": True}}}, True),
    ],
)
def test_training_images_are_asked_for_where_something_is_made_from_them(
    blank: Lab, change: dict[str, Any], trains: bool
) -> None:
    attributes = {**_experiment(), "data": EXPERIMENT["data"], **change}
    assert parse_experiment("tiny", attributes).trains is trains
    blank.write(attributes)
    keys = {key.path[-1] for key in blank.defs().resolve_asset_graph().get_all_asset_keys()}
    assert ("training_set" in keys) is trains
