"""Each sanity check passes what is right, finds what is wrong, and says what it would need where it cannot judge."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.attacks import FastGradientMethod, ProjectedGradientDescent, SquareAttack
from dioptra_assets.robustness.evaluation.sanity import (
    CHECKS,
    MODEL_SANITY_COLUMNS,
    REFERENCE_COLUMNS,
    TRANSFERRED,
    SanityResult,
    comparisons,
    larger,
    model_sanity_table,
    noisy,
    sanity_checks,
)
from dioptra_assets.robustness.image_set import ImageSet

pytestmark = pytest.mark.quick

N = 1000
NO_NOISE = pd.DataFrame(columns=["target", "norm", "eps", "robust_accuracy", "n"])
CONFIGS = {
    "fgm": FastGradientMethod(eps=0.3),
    "weak": FastGradientMethod(eps=0.1),
    "fgm_l2": FastGradientMethod(eps=0.3, norm=2),
    "pgd": ProjectedGradientDescent(eps=0.3, eps_step=0.05, steps=10),
    "pgd_long": ProjectedGradientDescent(eps=0.3, eps_step=0.05, steps=20),
    "pgd_large": ProjectedGradientDescent(eps=0.5, eps_step=0.05, steps=20),
    "square": SquareAttack(eps=0.3),
}


def metrics(*rows: tuple[str, str, str, float] | tuple[str, str, str, float, str, bool]) -> pd.DataFrame:
    """Rows of source, attack, target and robust accuracy, and for those behind a defence its name and `adaptive`."""
    full = [row if len(row) == 6 else (*row, "none", False) for row in rows]
    columns = ["source", "attack", "target", "robust_accuracy", "defence", "adaptive"]
    table = pd.DataFrame(full, columns=columns)
    return table.assign(n=N, linf_max=0.1, clean_accuracy=0.95, clean_accuracy_low=0.9)


def noise(rate: float, *, norm: str = "inf", eps: float = 0.3) -> pd.DataFrame:
    return pd.DataFrame([{"target": "a", "norm": norm, "eps": eps, "robust_accuracy": rate, "n": N}])


def check(name: str, table: pd.DataFrame, **more: Any) -> SanityResult:
    arguments: dict[str, Any] = {"class_count": 10, "noise": NO_NOISE, "zero_gradients": {}, **more}
    results = {result.name: result for result in sanity_checks(table, CONFIGS, **arguments)}
    assert list(results) == list(CHECKS), "one result a check, in their order"
    return results[name]


def own(**rates: float) -> pd.DataFrame:
    """Each attack on model `a` itself."""
    return metrics(*(("a", key, "a", rate) for key, rate in rates.items()))


def transfer(on_own: float, from_other: float) -> pd.DataFrame:
    return metrics(("a", "fgm", "a", on_own), ("b", "fgm", "a", from_other))


def behind(oblivious: float, adaptive: float) -> pd.DataFrame:
    return metrics(
        ("a", "fgm", "a", 0.3), ("a", "fgm", "a", oblivious, "jpeg", False), ("a", "fgm", "a", adaptive, "jpeg", True)
    )


def reference(attacked: float, other: float, *, low: float, allowed: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame([("a", "fgm", "exact", attacked, other, 200, low, allowed)], columns=REFERENCE_COLUMNS)


Case = tuple[pd.DataFrame, dict[str, Any]]
# Check -> what it passes, what it fails, a word of what it then says, what it cannot judge, and what to declare for it.
CASES: dict[str, tuple[Case, Case, str, Case, str]] = {
    "iterative_attacks_are_no_weaker": (
        (own(fgm=0.3, pgd=0.1), {}),
        (own(fgm=0.1, pgd=0.3), {}),
        "a|pgd on a: 30.0% is weaker than a|fgm on a: 10.0%",
        (own(fgm_l2=0.1, pgd=0.3), {}),
        "an fgm and a pgd or bim of one norm and eps",
    ),
    "success_grows_with_eps": (
        (own(weak=0.6, fgm=0.3), {}),
        (own(weak=0.3, fgm=0.6), {}),
        "a|fgm on a: 60.0% is weaker than a|weak on a: 30.0%",
        (own(fgm=0.3, pgd=0.1), {}),
        "several values of eps",
    ),
    "a_large_eps_reaches_chance": (
        (own(pgd_large=0.1), {}),
        (own(pgd_large=0.2), {}),
        "a|pgd_large on a: 20.0% is more than guessing, 10.0%",
        (own(pgd=0.5, fgm=0.5), {}),
        "eps 0.5",
    ),
    "transferred_attacks_are_no_stronger": (
        (transfer(0.1, 0.5), {}),
        (transfer(0.5, 0.1), {}),
        "a|fgm on a: 50.0% is weaker than b|fgm on a: 10.0%",
        (own(fgm=0.3), {}),
        "two architectures",
    ),
    "black_box_attacks_are_no_stronger": (
        (own(square=0.3, pgd=0.1), {}),
        (own(square=0.1, pgd=0.3), {}),
        "a|pgd on a: 30.0% is weaker than a|square on a: 10.0%",
        (own(square=0.1, fgm=0.3), {}),
        "a square and a pgd or bim",
    ),
    "twice_the_steps_change_nothing": (
        (own(pgd=0.11, pgd_long=0.1), {}),
        (own(pgd=0.3, pgd_long=0.1), {}),
        "give the attack more steps",
        (own(pgd=0.3, pgd_large=0.1), {}),
        "twice as many",
    ),
    "noise_is_weaker": (
        (own(fgm=0.3), {"noise": noise(0.9)}),
        (own(fgm=0.9), {"noise": noise(0.3)}),
        "a|fgm on a: 90.0% is weaker than noise of the same size, 30.0%",
        (own(fgm=0.9), {"noise": noise(0.3, norm="2")}),
        "in the norm inf or 2",
    ),
    "gradients_are_there": (
        (own(fgm=0.3), {"zero_gradients": {("a", "fgm", "none"): 0.01}}),
        (own(fgm=0.3), {"zero_gradients": {("a", "fgm", "none"): 0.02}}),
        "a|fgm: 2.0% of the images have a gradient of zero",
        (own(square=0.3), {"zero_gradients": {}}),
        "a white-box attack",
    ),
    "the_loss_hides_nothing": (
        (own(fgm=0.3), {"references": reference(0.3, 0.3, low=0.0)}),
        (own(fgm=0.9), {"references": reference(0.9, 0.7, low=0.1)}),
        "a|fgm: 90.0% of 200 images are still right, 70.0% with the loss exact",
        (own(square=0.3), {}),
        "an fgm, bim or pgd",
    ),
    "attacks_change_images": (
        (own(fgm=0.3), {}),
        (own(fgm=0.3).assign(linf_max=0.0), {}),
        "a|fgm: no image was changed",
        (own(), {}),
        "declare an attack",
    ),
    "models_beat_guessing": (
        (own(fgm=0.3), {}),
        (own(fgm=0.0).assign(clean_accuracy=0.1, clean_accuracy_low=0.08), {}),
        "a: 10.0% of the untouched images are right, guessing gives 10.0%: look at the order of the classes",
        (own(), {}),
        "declare an attack",
    ),
    "defences_are_judged_adaptive": (
        (behind(0.6, 0.4), {"defences": ["jpeg"]}),
        (behind(0.4, 0.6), {"defences": ["jpeg"]}),
        "a|fgm behind jpeg: adaptive 60.0% is weaker than oblivious 40.0%",
        (own(fgm=0.3), {"defences": []}),
        "declare a defence",
    ),
}


def test_every_check_has_its_cases() -> None:
    assert list(CASES) == list(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_right_passes(name: str) -> None:
    (table, more), *_ = CASES[name]
    result = check(name, table, **more)
    assert (result.status, result.findings) == ("passed", ())
    assert result.compared == 1


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_wrong_fails_in_a_sentence(name: str) -> None:
    _, (table, more), sentence, *_ = CASES[name]
    result = check(name, table, **more)
    assert (result.status, result.compared, len(result.findings)) == ("failed", 1, 1)
    assert sentence in result.findings[0]


@pytest.mark.parametrize("name", CHECKS)
def test_where_nothing_can_be_compared_the_check_says_what_to_declare(name: str) -> None:
    *_, (table, more), sentence = CASES[name]
    result = check(name, table, **more)
    assert (result.status, result.compared, len(result.findings)) == ("not applicable", 0, 1)
    assert sentence in result.findings[0]


def test_rows_behind_a_defence_are_judged_by_its_check_alone() -> None:
    table = pd.concat([own(fgm=0.3, pgd=0.1), metrics(("a", "pgd", "a", 0.9, "jpeg", False))])
    assert check("iterative_attacks_are_no_weaker", table).status == "passed"


@pytest.mark.parametrize("kept", [False, True])
def test_a_defence_judged_one_way_alone_fails(kept: bool) -> None:
    table = behind(0.6, 0.4)
    one_way = table[(table["defence"] == "none") | (table["adaptive"] == kept)]
    result = check("defences_are_judged_adaptive", one_way, defences=["jpeg"])
    assert result.status == "failed"
    assert result.findings == (f"jpeg: {int(not kept)} oblivious and {int(kept)} adaptive results",)


def test_a_defence_without_any_result_fails() -> None:
    result = check("defences_are_judged_adaptive", own(fgm=0.3), defences=["jpeg"])
    assert result.findings == ("jpeg: 0 oblivious and 0 adaptive results",)


ADAPTIVE = [
    ("iterative_attacks_are_no_weaker", (("fgm", 0.1), ("pgd", 0.3)), "a|pgd on a behind jpeg: 30.0%"),
    ("success_grows_with_eps", (("weak", 0.3), ("fgm", 0.6)), "a|fgm on a behind jpeg: 60.0%"),
    ("a_large_eps_reaches_chance", (("pgd_large", 0.2),), "more than guessing"),
    ("twice_the_steps_change_nothing", (("pgd", 0.3), ("pgd_long", 0.1)), "a|pgd_long on a behind jpeg: 10.0%"),
]


@pytest.mark.parametrize(("name", "rates", "sentence"), ADAPTIVE)
def test_attacks_that_know_their_defence_are_held_to_what_undefended_ones_are(
    name: str, rates: tuple[tuple[str, float], ...], sentence: str
) -> None:
    known, blind = (metrics(*(("a", key, "a", rate, "jpeg", a) for key, rate in rates)) for a in (True, False))
    result = check(name, known, defences=["jpeg"])
    assert result.status == "failed" and sentence in result.findings[0]
    assert check(name, blind, defences=["jpeg"]).status == "not applicable"


def test_a_gradient_of_zero_behind_a_defence_is_named() -> None:
    result = check("gradients_are_there", own(fgm=0.3), zero_gradients={("a", "fgm", "jpeg"): 0.5})
    assert result.findings == ("a|fgm behind jpeg: 50.0% of the images have a gradient of zero",)


def test_another_loss_may_be_a_little_better_and_a_gap_of_float32_may_not() -> None:
    for allowed, low, status in ((0.03, 0.02, "passed"), (0.03, 0.04, "failed"), (0.0, 0.001, "failed")):
        table = reference(0.5, 0.4, low=low, allowed=allowed)
        assert check("the_loss_hides_nothing", own(fgm=0.5), references=table).status == status


@pytest.mark.parametrize("column", ["linf_max", "clean_accuracy_low"])
def test_what_is_not_known_is_not_fine(column: str) -> None:
    name = {"linf_max": "attacks_change_images", "clean_accuracy_low": "models_beat_guessing"}[column]
    assert check(name, own(fgm=0.3).assign(**{column: np.nan})).status == "failed"
    assert check("gradients_are_there", own(fgm=0.3), zero_gradients={("a", "fgm", "none"): np.nan}).status == "failed"
    assert check("the_loss_hides_nothing", own(), references=reference(0.5, 0.5, low=np.nan)).status == "failed"


def test_the_table_of_one_model_says_which_attack_each_finding_concerns() -> None:
    table = pd.concat([own(fgm=0.1, pgd=0.3, square=0.5), behind(0.6, 0.4)[1:]])
    made = comparisons(table, CONFIGS, class_count=10, noise=NO_NOISE, zero_gradients={}, defences=["jpeg", "median"])
    rows = model_sanity_table(made, {"fgm": "v1", "pgd": "v2", "square": "v3"})
    assert list(rows.columns) == list(MODEL_SANITY_COLUMNS)
    assert set(rows["check"]) == set(CHECKS) - {TRANSFERRED}
    failed = rows[rows["status"] == "failed"].set_index("check")
    assert failed.loc["iterative_attacks_are_no_weaker", "attack"] == "pgd"
    assert failed.loc["iterative_attacks_are_no_weaker", "looked_at"] == "v2"
    assert tuple(failed.loc["defences_are_judged_adaptive", ["attack", "defence"]]) == ("", "median")
    # Every attack has a row of its own, whatever there was to compare: that it was looked at is seen.
    for attack in ("fgm", "pgd", "square"):
        own_rows = rows[(rows["attack"] == attack) & (rows["defence"] == "none")]
        assert len(own_rows) == len(CHECKS) - 1


def test_a_transferred_attack_may_climb_with_eps() -> None:
    table = metrics(("b", "weak", "a", 0.3), ("b", "fgm", "a", 0.6))
    assert check("success_grows_with_eps", table).status == "passed"


def test_a_difference_within_chance_is_none() -> None:
    assert not larger(0.52, 100, 0.50, 100)
    assert larger(0.52, 100_000, 0.50, 100_000)
    assert not larger(0.3, N, 0.5, N)
    assert larger(1.0, 100, 0.0, 100), "a rate of 0 or 1 has a width too"
    assert not larger(0.01, 100, 0.0, 100)


def images(n: int = 12) -> ImageSet:
    rng = np.random.default_rng(3)
    return ImageSet.from_arrays(rng.uniform(0.4, 0.6, (n, 6, 6, 1)).astype(np.float32), np.arange(n) % 2, ("x", "y"))


def test_noise_has_the_full_size_of_the_budget() -> None:
    before = images().to_numpy()[0]
    moved = noisy(images(), norm="inf", eps=0.1, seed=0).to_numpy()[0] - before
    np.testing.assert_allclose(np.abs(moved), 0.1, atol=1e-6)
    assert 0.3 < (moved > 0).mean() < 0.7, "up and down"
    moved = noisy(images(), norm="2", eps=0.5, seed=0).to_numpy()[0] - before
    np.testing.assert_allclose(np.sqrt((moved**2).sum(axis=(1, 2, 3))), 0.5, atol=1e-5)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_noise_stays_in_the_box_and_leaves_the_set_as_it_was(norm: str) -> None:
    source = images()
    before = source.to_numpy()[0].copy()
    noisy_set = noisy(source, norm=norm, eps=20.0, seed=0)
    drawn = noisy_set.to_numpy()[0]
    assert drawn.dtype == np.float32
    assert drawn.min() == 0 and drawn.max() == 1
    np.testing.assert_array_equal(source.to_numpy()[0], before)
    pd.testing.assert_frame_equal(noisy_set.index, source.index)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_noise_follows_from_seed_and_position_alone(norm: str) -> None:
    one, again, other = (noisy(images(), norm=norm, eps=0.1, seed=seed).to_numpy()[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0] - images().to_numpy()[0][0], one[1] - images().to_numpy()[0][1])
    for batch_size in (1, 5, 100):
        batches = noisy(images(), norm=norm, eps=0.1, seed=5).batches(batch_size)
        np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), one)
