"""The pixel attack: what it may change, when it stops, and that it finds what the oracle and ART find."""

import sys
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import PixelAttack, one_pixel_oracle, search
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict


def two_classes(weights: list[float], bias: float) -> Any:
    """Class 0 is predicted where `image @ weights + bias` is below 0."""
    return linear_model(np.stack([np.zeros(len(weights)), weights], axis=1), np.array([0.0, bias]))


def grey(value: float, count: int = 1, side: int = 2) -> ImageSet:
    return ImageSet.from_arrays(np.full((count, side, side, 1), value, np.float32), [0] * count, ("zero", "one"))


def few(digits: ImageSet, count: int) -> ImageSet:
    images, labels = digits.to_numpy()
    return ImageSet.from_arrays(images[:count], labels[:count], digits.class_names)


@pytest.mark.parametrize("es", [0, 1])
@pytest.mark.parametrize("th", [1, 3])
def test_at_most_th_pixels_change_and_to_whole_steps(es: Any, th: int, dense_model: Any, digits: ImageSet) -> None:
    images = few(digits, 100)
    adversarial, index = attack_all(PixelAttack(th=th, es=es, max_iter=15), dense_model, images)
    changed = adversarial != images.to_numpy()[0]
    assert changed.sum(axis=(1, 2, 3)).max() == th
    steps = adversarial[changed].astype(np.float64) * 255
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert index["found"].sum() > changed.any(axis=(1, 2, 3)).sum() > 5


@pytest.mark.parametrize("es", [0, 1])
def test_every_channel_of_a_pixel_is_searched(es: Any) -> None:
    import keras

    logits = keras.layers.Dense(2, name="logits")
    model = keras.Sequential([keras.Input((3, 5, 3)), keras.layers.Flatten(), logits])
    weights = np.zeros((3, 5, 3, 2), np.float32)
    weights[2, 4, :, 1] = [1, -1, 1]  # one pixel of one colour alone takes the sum above 1.9
    logits.set_weights([weights.reshape(45, 2), np.array([0, -1.9], np.float32)])
    images = ImageSet.from_arrays(np.zeros((1, 3, 5, 3), np.float32), [0], ("zero", "one"))
    adversarial, index = attack_all(PixelAttack(th=1, es=es, max_iter=400), model, images)
    assert index["found"].tolist() == [True]
    red, green, blue = adversarial[0, 2, 4]
    assert red - green + blue > 1.9
    adversarial[0, 2, 4] = 0
    assert not adversarial.any()


@pytest.mark.parametrize("es", [0, 1])
def test_an_image_without_success_or_already_wrong_comes_back_untouched(es: Any) -> None:
    # The image is wrong at once, out of reach, or wrong as soon as one pixel is bright.
    for bias, found, changed in [(0.5, True, 0), (-3.0, False, 0), (-0.5, True, 1)]:
        images = grey(0.1)
        attack = PixelAttack(th=1, es=es, max_iter=20)
        adversarial, index = attack_all(attack, two_classes([0.0, 0.0, 2.0, 0.0], bias), images)
        assert index["found"].tolist() == [found]
        assert (adversarial != images.to_numpy()[0]).sum() == changed
        assert (index["queries"][0] == 1) == (bias == 0.5)


def test_found_says_what_the_model_says(conv_model: Any, digits: ImageSet) -> None:
    for targeted in (False, True):
        attack = PixelAttack(th=4, max_iter=6, population=40, targeted=targeted)
        adversarial, index = attack_all(attack, conv_model, digits)
        predicted = predict(conv_model, adversarial)
        there = predicted == index["target_class"].to_numpy() if targeted else predicted != digits.labels
        assert (index["found"] == there).all()
        assert 0.1 < there.mean() < 0.9


def test_an_image_stops_at_the_first_generation_that_holds_a_success() -> None:
    model = two_classes([5.0, 5.0, 5.0, 5.0], -1.0)  # two in three changes succeed
    adversarial, index = attack_all(PixelAttack(th=1, es=0), model, grey(0.0, count=20))
    assert index["found"].all()
    assert index["queries"].median() <= 1 + 7  # the image itself and one generation
    assert len({image.tobytes() for image in adversarial}) > 10  # every image has its own search


def test_white_can_be_reached() -> None:
    """Only the very brightest shade of one pixel changes the class."""
    adversarial, index = attack_all(
        PixelAttack(th=1, max_iter=30), two_classes([0, 0, 0, 1.0], -254.5 / 255), grey(0.2)
    )
    assert index["found"].tolist() == [True]
    assert adversarial[0, 1, 1, 0] == 1


@pytest.mark.parametrize("es", [0, 1])
def test_remembered_scores_and_bounds_on_memory_change_nothing_but_queries(
    es: Any, dense_model: Any, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = PixelAttack(th=1, es=es, max_iter=12, population=30)
    images = few(digits, 40)
    adversarial, index = attack_all(attack, dense_model, images)
    monkeypatch.setattr(search, "MOST_REMEMBERED", 1)
    monkeypatch.setattr(search, "MOST_BYTES", 2**15)
    monkeypatch.setattr(search, "ROWS_A_FORWARD", 17)
    again, index_again = attack_all(attack, dense_model, images)
    assert adversarial.tobytes() == again.tobytes()
    assert index["found"].equals(index_again["found"])
    missed = ~index["found"]
    assert (index_again["queries"][missed] == 1 + 30 * (12 + es)).all()
    assert (index["queries"][missed] < index_again["queries"][missed]).all()


def test_the_oracle_tries_every_change_of_one_pixel() -> None:
    random = np.random.default_rng(0)
    weights, images = random.normal(size=(9, 3)), random.random((4, 3, 3, 1)).astype(np.float32)
    labels = (images.reshape(4, 9) @ weights).argmax(axis=1)
    table = one_pixel_oracle(linear_model(weights), images, labels)
    for image, label, row in zip(images.reshape(4, 9), labels, table.itertuples(), strict=True):
        changed = np.tile(image, (9, 256, 1))
        for place in range(9):
            changed[place, :, place] = np.arange(256) / 255
        logits = changed @ weights
        margins = logits[..., label] - np.delete(logits, label, axis=-1).max(axis=-1)
        place, shade = np.unravel_index(margins.argmin(), margins.shape)
        assert (row.row, row.column, row.shade) == (*divmod(place, 3), shade)
        assert abs(row.margin - margins.min()) < search.GRAIN
        assert row.reachable == (margins.min() < 0)


def test_successes_with_one_pixel_are_those_the_oracle_finds(dense_model: Any, digits: ImageSet) -> None:
    images = few(digits, 40)
    reachable = one_pixel_oracle(dense_model, *images.to_numpy())["reachable"]
    assert 5 < reachable.sum() < 40
    for attack, least in ((PixelAttack(th=1, es=0, max_iter=40), 0.7), (PixelAttack(th=1, max_iter=40), 0.85)):
        found = attack_all(attack, dense_model, images)[1]["found"]
        assert not (found & ~reachable).any()
        assert found.sum() >= least * reachable.sum()


def test_the_oracle_takes_grey_images_alone() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2, 3\): the oracle takes grey ones"):
        one_pixel_oracle(None, np.zeros((1, 2, 2, 3), np.float32), np.zeros(1, int))


@pytest.mark.parametrize("th", [1, 5])
def test_as_many_images_fall_as_with_art_but_for_chance(th: int, dense_model: Any, digits: ImageSet) -> None:
    images = few(digits, 12)

    def attacked(engine: Any, seed: int = 0) -> Any:
        return attack_all(PixelAttack(th=th, max_iter=3, engine=engine), dense_model, images, seed)

    reference = attacked("art")
    ours = [attacked("compiled", seed) for seed in range(4)]
    assert np.mean([index["found"].sum() for _, index in ours]) > reference[1]["found"].sum() - 2
    for adversarial, index in [reference, *ours]:
        changed = (adversarial != images.to_numpy()[0]).sum(axis=(1, 2, 3))
        assert changed.max() <= th
        assert not changed[~index["found"]].any()


def test_art_draws_the_same_again_and_leaves_the_global_generator_alone(dense_model: Any, digits: ImageSet) -> None:
    attack = PixelAttack(th=5, max_iter=1, engine="art", targeted=True)
    before: Any = np.random.get_state()
    whole, index = attack_all(attack, dense_model, few(digits, 6))
    after: Any = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    again, index_again = attack_all(attack.model_copy(update={"batch_size": 4}), dense_model, few(digits, 6))
    assert whole.tobytes() == again.tobytes()
    assert index.equals(index_again)


def test_art_without_cma_says_what_to_install(
    dense_model: Any, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)  # as where it is not installed
    with pytest.raises(RuntimeError, match="es is 0 with the engine art, which needs the package cma: install cma, or"):
        attack_all(PixelAttack(th=1, es=0, engine="art"), dense_model, digits)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"th\n.*Field required"),
        ({"th": 0}, r"th\n.*greater than or equal to 1"),
        ({"th": 1.5}, r"th\n.*valid integer"),
        ({"th": 1, "es": 2}, r"es\n.*0 or 1"),
        ({"th": 1, "max_iter": 0}, r"max_iter\n.*greater than or equal to 1"),
        ({"th": 1, "population": 4}, r"population\n.*greater than or equal to 5"),
        ({"th": 1, "population": 50, "engine": "art"}, r"population is 50 with the engine art, which sets its own"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PixelAttack(**config)


def test_more_pixels_than_there_are_is_refused(dense_model: Any, digits: ImageSet) -> None:
    with pytest.raises(ValueError, match="th is 65, but the images have 64 pixels: at most that is allowed"):
        attack_all(PixelAttack(th=65), dense_model, digits)
