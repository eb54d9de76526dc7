"""Comparing models and looking at images, on the materialized experiment."""

import io

import pytest
from PIL import Image

import dioptra_assets as da
from tests.conftest import ATTACKS, Lab


def test_two_models_are_compared_attack_by_attack(looking: Lab) -> None:
    table = da.compare("tiny", "le_net", "shallow_net")
    metrics = da.load("tiny/evasion_metrics")
    assert set(table["attack"]) == set(ATTACKS)
    for _, row in table.iterrows():
        own = metrics[(metrics["attack"] == row["attack"]) & (metrics["source"] == metrics["target"])]
        by_model = own.set_index("target")["robust_accuracy"]
        assert row["first"] == pytest.approx(by_model["le_net"])
        assert row["second"] == pytest.approx(by_model["shallow_net"])
        assert row["low"] <= row["difference"] <= row["high"]


def test_of_one_attack_they_are_compared_image_by_image(looking: Lab) -> None:
    table = da.compare("tiny", "le_net", "shallow_net", attack="fgm_0.3")
    assert len(table) == len(da.load("tiny/testing_set"))
    assert table["first_right"].equals(table["first_adversarial"] == table["label"])


def test_a_model_that_was_never_attacked_is_named(looking: Lab) -> None:
    with pytest.raises(LookupError, match="architecture 'alex_net' has been materialized"):
        da.compare("tiny", "le_net", "alex_net")


def test_one_image_is_followed_through_every_attack(looking: Lab) -> None:
    image = str(da.load("tiny/testing_set").index["image_id"].iloc[3])
    table = da.history("tiny", image)
    assert set(table["image_id"]) == {image}
    assert len(table) == len(ATTACKS) * 2 * 2  # attacks, sources, targets
    with pytest.raises(LookupError, match="no attacked image 'nowhere'"):
        da.history("tiny", "nowhere")


def size(picture: object) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture._repr_png_())).size  # type: ignore[attr-defined]


def test_sets_show_themselves_with_labels(looking: Lab) -> None:
    wide, high = size(da.show("tiny/testing_set", images=5))
    assert wide > high
    cell = {"architecture": "le_net", "attack": "fgm_0.3"}
    assert size(da.show("tiny/adversarial_set", images=5, **cell))[1] > high
    assert size(da.show("tiny/adversarial_set", images=3, only="fooled", **cell))[0] > 0


def test_what_cannot_be_shown_is_said(looking: Lab) -> None:
    with pytest.raises(TypeError, match="tiny/report is not an image set"):
        da.show("tiny/report")
    with pytest.raises(ValueError, match="'some' is not allowed, available: all, fooled, held"):
        da.show("tiny/adversarial_set", only="some", architecture="le_net", attack="weak")
