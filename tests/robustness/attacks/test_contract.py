"""What every attack must hold to, one table of attacks against one list of contracts."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import ATTACKS, Attack, NonFiniteError, parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict


@dataclass(frozen=True)
class Case:
    """One attack under test.

    Attributes:
        config: its entry, as an experiment would write it.
        ord: order of the norm of its budget, as in `np.linalg.norm`.
        robust: the accuracy it must bring the dense model under.
        gradients: it is steered by gradients, and so can meet one that is zero.
        added: the columns it adds to the index.
        drawn: it starts at a random point, so that an image without a gradient moves too.
        field: the field that sets its budget.
        unit: the size of one of that field, in the norm.
    """

    config: dict[str, Any]
    ord: float
    robust: float
    gradients: bool = True
    added: tuple[str, ...] = ()
    drawn: bool = False
    field: str = "eps"
    unit: float = 1.0

    @property
    def eps(self) -> float:
        return (self.config.get("parameters") or self.config)[self.field] * self.unit


def pixel_case(config: dict[str, Any], robust: float) -> Case:
    config = {"method": "pixel", "th": 10} | config
    return Case(config, 0, robust, gradients=False, added=("found",), field="th")


def threshold_case(config: dict[str, Any], robust: float) -> Case:
    config = {"method": "threshold", "th": 60} | config
    return Case(config, np.inf, robust, gradients=False, added=("found",), field="th", unit=1 / 255)


CASES = {
    "fgm": Case({"method": "fgm", "eps": 0.3}, np.inf, 0.1),
    "fgm l1": Case({"method": "fgm", "eps": 0.9, "norm": 1}, 1, 0.85),
    "fgm l2": Case({"method": "fgm", "eps": 1.5, "norm": 2}, 2, 0.1),
    "fgm targeted": Case({"method": "fgm", "eps": 0.3, "targeted": True}, np.inf, 0.1),
    "fgm target 3": Case({"method": "fgm", "eps": 0.3, "targeted": True, "target_class": 3}, np.inf, 0.15),
    "fgm minimal": Case({"method": "fgm", "eps": 0.3, "eps_step": 0.05, "minimal": 1}, np.inf, 0.1, added=("found",)),
    "fgm minimal l2": Case(
        {"method": "fgm", "eps": 1.5, "eps_step": 0.25, "norm": 2, "minimal": 1}, 2, 0.1, added=("found",)
    ),
    "fgm art": Case({"method": "fgm", "eps": 0.3, "engine": "art"}, np.inf, 0.1),
    "fgm art l2": Case({"method": "fgm", "eps": 1.5, "norm": 2, "engine": "art"}, 2, 0.1),
    "fgm margin": Case({"method": "fgm", "eps": 0.3, "loss": "margin"}, np.inf, 0.1),
    "fgm dlr targeted": Case({"method": "fgm", "eps": 0.3, "loss": "dlr", "targeted": True}, np.inf, 0.6),
    "bim margin targeted": Case(
        {"method": "bim", "eps": 0.2, "steps": 5, "loss": "margin", "targeted": True}, np.inf, 0.3
    ),
    "bim": Case({"method": "bim", "eps": 0.2, "steps": 5}, np.inf, 0.1),
    "bim art": Case({"method": "bim", "eps": 0.2, "steps": 3, "engine": "art"}, np.inf, 0.1),
    "pgd": Case({"method": "pgd", "eps": 0.2, "steps": 5}, np.inf, 0.1, drawn=True),
    "pgd l2 of two starts": Case(
        {"method": "pgd", "eps": 1.2, "norm": 2, "steps": 5, "random_starts": 2}, 2, 0.1, drawn=True
    ),
    "pgd targeted": Case({"method": "pgd", "eps": 0.3, "steps": 5, "random_starts": 0, "targeted": True}, np.inf, 0.1),
    "pgd dlr of two starts": Case(
        {"method": "pgd", "eps": 0.2, "steps": 5, "loss": "dlr", "random_starts": 2}, np.inf, 0.1, drawn=True
    ),
    "pgd that stops, of two starts": Case(
        {"method": "pgd", "eps": 0.2, "steps": 5, "random_starts": 2, "early_stop": True}, np.inf, 0.1, drawn=True
    ),
    "square": Case(
        {"method": "square", "eps": 0.25, "max_queries": 100}, np.inf, 0.1, gradients=False, added=("found",)
    ),
    "square target 3": Case(
        {"method": "square", "eps": 0.3, "max_queries": 60, "targeted": True, "target_class": 3},
        np.inf,
        0.5,
        gradients=False,
        added=("found",),
    ),
    "square targeted": Case(
        {"method": "square", "eps": 0.3, "max_queries": 100, "targeted": True},
        np.inf,
        0.4,
        gradients=False,
        added=("found",),
    ),
    "art": Case(
        {
            "method": "art",
            "attack": "MomentumIterativeMethod",
            "parameters": {"eps": 0.2, "eps_step": 0.1, "max_iter": 3},
        },
        np.inf,
        0.1,
    ),
    "pixel": pixel_case({"es": 0, "max_iter": 30}, 0.3),
    "pixel de": pixel_case({"es": 1, "max_iter": 8, "population": 40}, 0.3),
    "pixel targeted": pixel_case({"es": 1, "max_iter": 12, "population": 40, "targeted": True}, 0.7),
    "threshold": threshold_case({"es": 0, "max_iter": 30}, 0.3),
    "threshold de": threshold_case({"es": 1, "max_iter": 12, "population": 30}, 0.5),
    "threshold target 3": threshold_case({"th": 90, "es": 0, "max_iter": 30, "targeted": True, "target_class": 3}, 0.6),
}


@dataclass(frozen=True)
class Run:
    """One run of a case over the digits, and what was there before and after."""

    images: np.ndarray
    index: pd.DataFrame
    rows: list[int]
    progress: list[tuple[int, int]]
    untouched: bool


@pytest.fixture(scope="module")
def digits(digits: ImageSet) -> ImageSet:
    """Half of the digits that the models have not seen."""
    images, labels = digits.to_numpy()
    return ImageSet.from_arrays(images[:107], labels[:107], digits.class_names, name=digits.name)


@pytest.fixture(scope="module", params=[pytest.param(case, id=name) for name, case in CASES.items()])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def run(case: Case, dense_model: Any, digits: ImageSet) -> Run:
    """The case over the digits in batches of 32, seed 0."""
    pixels = digits.to_numpy()[0].copy()
    before = digits.index.assign(file="a.png")
    attacked = replace(ImageSet.from_arrays(pixels, digits.labels, digits.class_names), index=before.copy())
    np.random.seed(3)
    progress: list[tuple[int, int]] = []
    batches = list(
        perturb_set(
            attack_of(case),
            dense_model,
            attacked,
            seed=0,
            class_count=10,
            progress=lambda done, total: progress.append((done, total)),
        )
    )
    drawn = np.random.random()
    np.random.seed(3)
    return Run(
        np.concatenate([batch.images for batch in batches]),
        pd.concat([batch.index for batch in batches], ignore_index=True),
        [len(batch.images) for batch in batches],
        progress,
        drawn == np.random.random() and np.array_equal(pixels, digits.to_numpy()[0]) and attacked.index.equals(before),
    )


def attack_of(case: Case, **changes: Any) -> Attack:
    if "parameters" in case.config and "eps" in changes:
        changes["parameters"] = case.config["parameters"] | {"eps": changes.pop("eps")}
    return parse_attack(case.config | {"batch_size": 32} | changes)


def sizes(case: Case, adversarial: np.ndarray, images: np.ndarray) -> np.ndarray:
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    return np.linalg.norm(change, ord=case.ord, axis=1)


def test_every_attack_is_in_the_table() -> None:
    assert {case.config["method"] for case in CASES.values()} == set(ATTACKS)


def test_pixels_stay_in_the_box_as_float32(run: Run) -> None:
    assert run.images.dtype == np.float32
    assert run.images.min() >= 0
    assert run.images.max() <= 1


def test_the_change_stays_in_the_budget(case: Case, run: Run, digits: ImageSet) -> None:
    changed = sizes(case, run.images, digits.to_numpy()[0])
    assert changed.max() <= case.eps * (1 + 1e-6)
    assert changed.max() > 0.5 * case.eps


def test_every_image_comes_back_once_and_in_order(run: Run, digits: ImageSet) -> None:
    assert run.rows == [32, 32, 32, 11]
    assert list(run.index["image_id"]) == list(digits.index["image_id"])
    assert list(run.index["label"]) == list(digits.labels)
    assert run.progress == [(32, 107), (64, 107), (96, 107), (107, 107)]


def test_the_attacked_set_and_the_global_generator_are_left_alone(run: Run) -> None:
    assert run.untouched


def test_the_index_is_complete(case: Case, run: Run) -> None:
    columns = {"image_id", "label", "file", "target_class", "queries", "zero_gradient", *case.added}
    assert set(run.index.columns) == columns
    assert run.index["file"].eq("a.png").all()
    assert run.index[["queries", "zero_gradient", "target_class"]].dtypes.astype(str).tolist() == [
        "int64",
        "bool",
        "Int64",
    ]
    attack = attack_of(case)
    spared = run.index["target_class"].isna() & attack.targeted
    assert run.index["queries"][~spared].min() >= 1
    assert run.index["queries"][spared].eq(int(attack.seeks())).all()
    assert run.index["target_class"].notna().any() == attack.targeted
    assert not (run.index["target_class"] == run.index["label"]).any()


@pytest.mark.parametrize("batch_size", [25, 1000])
def test_batch_size_changes_nothing(case: Case, run: Run, batch_size: int, dense_model: Any, digits: ImageSet) -> None:
    images, index = attack_all(attack_of(case, batch_size=batch_size), dense_model, digits)
    # Products of matrices of another size may round otherwise; no sign and no level may change by it.
    tensorflow = keras.backend.backend() == "tensorflow"
    same = np.isclose(images, run.images, rtol=0, atol=1e-6 if tensorflow else 1e-4).all(axis=(1, 2, 3))
    # On JAX the better of two random starts may be the other one, where they differ in a last bit.
    assert same.mean() >= (1 if tensorflow or not case.drawn else 0.75)
    rows = np.flatnonzero(same)
    assert index.iloc[rows].equals(run.index.drop(columns="file").iloc[rows])


def test_same_seed_gives_the_same_bytes_whoever_names_it(
    case: Case, run: Run, dense_model: Any, digits: ImageSet
) -> None:
    images, index = attack_all(attack_of(case, seed=0), dense_model, digits, seed=6)
    assert images.tobytes() == run.images.tobytes()
    assert index.equals(run.index.drop(columns="file"))


def test_the_threat_model_is_complete(case: Case) -> None:
    attack = attack_of(case)
    threat = attack.threat_model()
    assert threat.nist_class == "evasion"
    assert threat.goal == ("targeted" if attack.targeted else "untargeted")
    assert threat.norm == {np.inf: "inf", 0: "0", 1: "1", 2: "2"}[case.ord]
    assert f"{case.eps:g}" in threat.budget


def test_a_config_survives_json_and_cannot_be_changed(case: Case) -> None:
    attack = attack_of(case)
    assert type(attack).model_validate_json(attack.model_dump_json()) == attack
    assert hash(attack) == hash(attack_of(case))
    with pytest.raises(ValidationError, match="frozen"):
        attack.batch_size = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"epsilon": 0.1}, "epsilon"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": 10**12}, "batch_size"),
        ({"engine": "torch"}, "engine"),
        ({"seed": -1}, "seed"),
        ({"target_class": -1, "targeted": True}, "target_class"),
    ],
)
def test_a_wrong_field_is_refused_by_name(case: Case, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        attack_of(case, **wrong)
    assert field in [error["loc"][0] for error in refused.value.errors()]


def test_a_model_is_broken_and_noise_of_the_same_size_does_not_break_it(
    case: Case, run: Run, dense_model: Any, digits: ImageSet
) -> None:
    images, labels = digits.to_numpy()

    def accuracy(pixels: np.ndarray) -> float:
        return float((predict(dense_model, pixels.astype(np.float32)) == labels).mean())

    generator = np.random.default_rng(0)
    noise = generator.choice([-1.0, 1.0], images.shape)
    size = sizes(case, run.images, images)
    if case.ord == 0:  # in as many pixels, all the way to black or white
        ranks = generator.permuted(np.tile(np.arange(64), (len(images), 1)), axis=1)
        noise, size = (
            np.where(ranks < size[:, None], noise.reshape(-1, 64), 0).reshape(images.shape),
            np.ones(len(size)),
        )
    else:
        size = size / sizes(case, noise, np.zeros_like(noise))
    noisy = np.clip(images + noise * size[:, None, None, None], 0, 1)

    assert accuracy(images) > 0.8
    assert accuracy(run.images) < case.robust
    assert accuracy(noisy) > accuracy(run.images) + 0.05


def test_success_grows_with_eps(case: Case, run: Run, dense_model: Any, digits: ImageSet) -> None:
    def robust_accuracy(images: np.ndarray) -> float:
        return float((predict(dense_model, images) == digits.labels).mean())

    budget = (case.config.get("parameters") or case.config)[case.field] * 0.6
    attack = attack_of(case, **{case.field: int(budget) if case.field == "th" else budget})
    less = robust_accuracy(attack_all(attack, dense_model, digits)[0])
    assert robust_accuracy(digits.to_numpy()[0]) > less > robust_accuracy(run.images)


def test_a_target_beyond_the_classes_is_refused_before_any_work(case: Case, dense_model: Any, digits: ImageSet) -> None:
    attack = attack_of(case, targeted=True, target_class=10)
    with pytest.raises(ValueError, match="target_class is 10, but there are 10 classes: allowed are 0 to 9"):
        perturb_set(attack, dense_model, digits, seed=0, class_count=10)


def test_a_model_that_gives_nan_is_an_error_that_names_set_and_image(case: Case, digits: ImageSet) -> None:
    weights = np.full((64, 10), 0.1)
    weights[0] = np.nan
    with pytest.raises(NonFiniteError, match=r"digits/testing_set: non-finite logits .*000000"):
        attack_all(attack_of(case), linear_model(weights), digits)


def test_a_pixel_that_is_nan_is_an_error_that_names_set_and_image(case: Case, dense_model: Any) -> None:
    images = np.full((3, 8, 8, 1), 0.5, np.float32)
    images[1, 2, 2] = np.nan
    broken = ImageSet.from_arrays(images, [0, 1, 2], tuple("0123456789"), image_ids=["a", "b", "c"], name="broken")
    with pytest.raises(NonFiniteError, match=r"broken: non-finite pixels at 1 images of one batch: b$"):
        attack_all(attack_of(case), dense_model, broken)


def test_pixels_out_of_the_box_are_refused(case: Case, dense_model: Any) -> None:
    bytes_of = ImageSet.from_arrays(np.full((1, 8, 8, 1), 255.0), [0], tuple("0123456789"), name="bytes")
    with pytest.raises(ValueError, match=r"bytes: pixels reach from 255.0 to 255.0, they must lie in \[0, 1\]"):
        attack_all(attack_of(case), dense_model, bytes_of)


def test_an_image_of_the_target_class_is_not_attacked_and_is_found_if_the_model_sees_that_class(
    case: Case, dense_model: Any, digits: ImageSet
) -> None:
    attack = attack_of(case)
    images, labels = digits.to_numpy()
    # A class that the model mistakes, told to the attack as the true one of every other image.
    seen = predict(dense_model, images)
    wrongly = np.where(np.arange(len(labels)) % 2, 3, (seen + 1) % 10)
    told = ImageSet.from_arrays(images[:40], wrongly[:40], digits.class_names)
    if attack.target_class is None:
        pytest.skip("aims at another class for every image")
    adversarial, index = attack_all(attack, dense_model, told)
    spared = wrongly[:40] == 3
    assert 20 <= spared.sum() < 40
    assert np.array_equal(adversarial[spared], images[:40][spared])
    assert index["target_class"].isna().tolist() == spared.tolist()
    assert set(index["queries"][spared]) == {int(attack.seeks())}
    assert not index["zero_gradient"][spared].any()
    if attack.seeks():
        assert index["found"][spared].tolist() == (seen[:40][spared] == 3).tolist()
        assert not index["found"][spared].all()
    whole = ImageSet.from_arrays(images[:5], [3] * 5, digits.class_names)
    assert np.array_equal(attack_all(attack, dense_model, whole)[0], images[:5])


def test_images_without_a_gradient_are_counted(case: Case, digits: ImageSet) -> None:
    if not case.gradients:
        pytest.skip("not steered by gradients")
    adversarial, index = attack_all(attack_of(case), linear_model(np.zeros((64, 10))), digits)
    attacked = index["target_class"].notna() | (not attack_of(case).targeted)
    assert index["zero_gradient"][attacked].all()
    assert not index["zero_gradient"][~attacked].any()
    assert np.array_equal(adversarial, digits.to_numpy()[0]) != case.drawn


def test_a_model_that_ends_in_softmax_is_refused(case: Case, digits: ImageSet) -> None:
    import keras

    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")], name="probabilities"
    )
    with pytest.raises(ValueError, match="'probabilities' ends in softmax: attacks take logits"):
        perturb_set(attack_of(case), model, digits, seed=0, class_count=10)


def test_a_model_of_other_classes_is_refused(case: Case, digits: ImageSet) -> None:
    with pytest.raises(ValueError, match="expected logits of 10 classes"):
        attack_all(attack_of(case), linear_model(np.ones((64, 4))), digits)


def test_configs_load_without_any_machine_learning_library() -> None:
    code = (
        "import sys, dioptra_assets.robustness.attacks as a;"
        "[a.parse_attack({'method': m, 'eps': 0.3}).threat_model() for m in ('fgm', 'bim', 'pgd', 'square')];"
        "a.parse_attack({'method': 'art', 'attack': 'DeepFool', 'parameters': {'max_iter': 3}}).threat_model();"
        "sys.exit(str({'tensorflow', 'keras', 'art', 'jax', 'scipy'} & set(sys.modules) or ''))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.strip() == ""


@pytest.mark.parametrize(("own", "used"), [(None, 7), (0, 0), (5, 5)])
def test_the_seed_of_the_cell_counts_unless_the_attack_names_its_own(
    own: int | None, used: int, digits: ImageSet, dense_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    attack = parse_attack({"method": "fgm", "eps": 0.1, "seed": own})
    monkeypatch.setattr(type(attack), "prepare", lambda self, model, *, seed, class_count: seeds.append(seed))
    perturb_set(attack, dense_model, digits, seed=7, class_count=10)
    assert seeds == [used]


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="method is 'fgsm': allowed are ") as refused:
        parse_attack({"method": "fgsm", "eps": 0.1})
    assert str(refused.value).split("allowed are ")[1].split(", ") == sorted(ATTACKS)
