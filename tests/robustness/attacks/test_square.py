"""The square attack: what it spends, where it stops, and how far it gets."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import ProjectedGradientDescent, SquareAttack, compiled, square
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict


def corner_model() -> Any:
    """Class 1 wins as soon as the four pixels in the corner of an 8x8 image are brighter than 0.6 in the mean."""
    weights = np.zeros((8, 8, 2))
    weights[:2, :2, 1] = 2.5
    return linear_model(weights.reshape(64, 2), np.array([0.0, -6.0]))


def grey(count: int, label: int = 0) -> ImageSet:
    return ImageSet.from_arrays(np.full((count, 8, 8, 1), 0.5), [label] * count, ("dark", "bright"))


class Asked:
    """Notes what the model is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[np.ndarray] = []
        real = compiled.compiled_margins

        def margins(model: Any, targeted: bool) -> Any:
            run = real(model, targeted)

            def noted(images: np.ndarray, goals: np.ndarray) -> Any:
                self.batches.append(images.copy())
                return run(images, goals)

            return noted

        monkeypatch.setattr(square.compiled, "compiled_margins", margins)


def test_a_model_that_looks_at_one_corner_is_broken_there() -> None:
    model = corner_model()
    # Every pixel has to be hit, most often by squares of one pixel: one in a million is not within so many queries.
    adversarial, index = attack_all(SquareAttack(eps=0.2, max_queries=1000), model, grey(20))
    assert index["found"].all()
    assert (predict(model, adversarial) == 1).all()
    assert adversarial[:, :2, :2].mean(axis=(1, 2, 3)).min() > 0.6


def test_only_unfinished_images_are_asked_for_and_every_query_is_counted(
    monkeypatch: pytest.MonkeyPatch, dense_model: Any, digits: ImageSet
) -> None:
    asked = Asked(monkeypatch)
    attack = SquareAttack(eps=0.1, max_queries=40, batch_size=500)
    adversarial, index = attack_all(attack, dense_model, digits)
    wrong = predict(dense_model, digits.to_numpy()[0]) != digits.labels
    assert sum(map(len, asked.batches)) == index["queries"].sum()
    assert len(asked.batches) == index["queries"].max() == 40
    assert (index["queries"][wrong] == 1).all()
    assert np.array_equal(adversarial[wrong], digits.to_numpy()[0][wrong])
    assert (index["queries"][~index["found"]] == 40).all()
    assert (index["queries"][index["found"]] < 40).any()
    assert 0.1 < index["found"].mean() < 0.9


def test_found_says_whether_the_stored_image_is_where_the_attack_wants_it(dense_model: Any, digits: ImageSet) -> None:
    for targeted in (False, True):
        attack = SquareAttack(eps=0.2, max_queries=40, targeted=targeted)
        adversarial, index = attack_all(attack, dense_model, digits)
        prediction = predict(dense_model, adversarial)
        goal = index["target_class"].to_numpy(np.int64) if targeted else digits.labels
        assert (index["found"] == ((prediction == goal) == targeted)).all()


def test_an_image_that_is_never_found_comes_back_as_the_best_try(
    monkeypatch: pytest.MonkeyPatch, dense_model: Any, digits: ImageSet
) -> None:
    margins = compiled.compiled_margins(dense_model, False)
    images, labels = digits.to_numpy()
    missed = 0
    for image, label in zip(images[:6], labels[:6].astype(np.int32), strict=True):
        asked = Asked(monkeypatch)
        one = ImageSet.from_arrays(image[None], [label], digits.class_names)
        adversarial, index = attack_all(SquareAttack(eps=0.03, max_queries=40), dense_model, one)
        if index["found"][0]:
            continue
        missed += 1
        tries = np.concatenate(asked.batches[1:])
        of_tries = margins(tries, np.repeat(label, len(tries)))["margin"]
        np.testing.assert_allclose(margins(adversarial, label[None])["margin"], of_tries.min(), atol=1e-3)
        assert of_tries.min() < of_tries[0] - 1e-2
    assert missed


def test_the_search_starts_at_the_stripes_even_where_the_image_itself_is_better() -> None:
    """Where every move but one fails, an image that is not found is still one of the ball's corners."""
    weights = np.zeros((64, 2))
    weights[:, 0] = np.tile([1, -1], 32)  # a checkerboard of columns: about half of all stripes raise the margin
    images = grey(20)
    adversarial, index = attack_all(
        SquareAttack(eps=0.1, max_queries=3), linear_model(weights, np.array([9.0, 0])), images
    )
    assert not index["found"].any()
    np.testing.assert_allclose(np.abs(adversarial - 0.5), 0.1, atol=1e-6)


def test_every_pixel_stands_at_a_corner_of_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    import keras

    generator = np.random.default_rng(0)
    images = ImageSet.from_arrays(generator.random((3, 8, 8, 3)), [0, 0, 0], "ab")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, name="logits")])
    model.layers[-1].set_weights([generator.normal(size=(192, 2)), np.array([100.0, 0.0])])
    adversarial, _ = attack_all(SquareAttack(eps=0.1, max_queries=30), model, images)
    pixels = images.to_numpy()[0]
    ends = [np.clip(pixels + np.float32(0.1) * sign, 0, 1) for sign in (-1, 1)]
    assert ((adversarial == ends[0]) | (adversarial == ends[1])).all()
    stripes = np.sign(asked.batches[1] - pixels)
    assert (stripes == stripes[:, :1]).all()
    assert len(np.unique(stripes[:, 0].reshape(-1, 3), axis=0)) > 4


def test_no_query_is_spent_on_an_image_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one channel every second square would be what stands there already."""
    model = corner_model()
    margins = compiled.compiled_margins(model, False)
    asked = Asked(monkeypatch)
    attack_all(SquareAttack(eps=0.01, max_queries=60, p_init=0.1), model, grey(1))
    current, best = asked.batches[1], np.inf
    for place, batch in enumerate(asked.batches[1:]):
        margin = margins(batch, np.zeros(1, np.int32))["margin"][0]
        assert place == 0 or (batch != current).any()
        if margin < best - 2.0**-12:
            current, best = batch, margin
    assert len(asked.batches) == 60


def test_squares_shrink_as_the_queries_are_spent() -> None:
    attack = SquareAttack(eps=0.1, max_queries=10_002, p_init=0.8)
    sides = [attack.side(spent, 28, 28) for spent in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 10_000)]
    shares = [0.8 / 2**k for k in (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9)]
    assert sides == [max(round((share * 784) ** 0.5), 1) for share in shares]
    assert SquareAttack(eps=0.1, p_init=1).side(0, 8, 20) == 8


def test_a_square_reaches_every_place_and_stays_within_the_image() -> None:
    numbers = np.linspace(0, 1, 400, endpoint=False, dtype=np.float32)
    within = square._within(numbers, 8, 3)
    assert (within.sum(axis=1) == 3).all()
    assert sorted(set(within.argmax(axis=1))) == [0, 1, 2, 3, 4, 5]


def test_it_is_not_stronger_than_an_attack_that_sees_the_gradient(conv_model: Any, digits: ImageSet) -> None:
    def accuracy(attack: Any) -> float:
        return float((predict(conv_model, attack_all(attack, conv_model, digits)[0]) == digits.labels).mean())

    for eps in (0.05, 0.1):
        white_box = accuracy(ProjectedGradientDescent(eps=eps, steps=20))
        assert white_box <= accuracy(SquareAttack(eps=eps, max_queries=150))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"eps\n.*Field required"),
        ({"eps": 2}, r"eps\n.*less than or equal to 1"),
        ({"eps": 0.1, "max_queries": 2}, r"max_queries\n.*greater than or equal to 3"),
        ({"eps": 0.1, "p_init": 0}, r"p_init\n.*greater than 0"),
        ({"eps": 0.1, "engine": "art"}, r"engine\n.*'compiled'"),
        ({"eps": 0.1, "norm": 2}, r"norm\n.*not permitted"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SquareAttack(**config)
