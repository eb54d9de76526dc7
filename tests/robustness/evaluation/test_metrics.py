from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation import metrics as module
from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS
from dioptra_assets.robustness.evaluation.examples import EXAMPLE_COLUMNS, evasion_success
from dioptra_assets.robustness.evaluation.metrics import (
    METRIC_COLUMNS,
    RATES,
    defence_comparison,
    macro_auc,
    macro_precision_recall,
    metric_table,
    security_curve,
    transfer_matrix,
)

pytestmark = pytest.mark.quick

NAMES = tuple("abcd")


def _examples(
    n: int = 200, *, seed: int = 0, target: str = "le_net", attack: str = "fgm_0.3", source: str = "le_net", k: int = 4
) -> pd.DataFrame:
    """A table such as `example_table` makes, of an attack that does some harm."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % k
    clean = np.where(rng.random(n) < 0.9, label, rng.integers(0, k, n))
    logits = rng.normal(0, 1, (n, k)) + np.eye(k)[label]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    adversarial = probabilities.argmax(axis=1)
    nowhere = pd.Series(pd.NA, index=range(n), dtype="Int64")
    table = pd.DataFrame(
        {
            "image_id": [f"{i:06d}" for i in range(n)],
            "label": label,
            "source": source,
            "attack": attack,
            "target": target,
            "defence": "none",
            "adaptive": False,
            "clean_prediction": clean,
            "clean_confidence": np.float32(0.9),
            "adversarial_prediction": adversarial,
            "adversarial_confidence": probabilities.max(axis=1),
            "margin": np.float32(0.1),
            "target_class": nowhere,
            "success": evasion_success(label, clean, adversarial, nowhere, targeted=False),
            **{name: rng.random(n) for name in DISTANCE_COLUMNS},
            "adversarial_probabilities": pd.Series(list(probabilities), dtype=object),
        }
    )
    assert list(table.columns) == list(EXAMPLE_COLUMNS)
    return table


def _measure(examples: pd.DataFrame, **arguments) -> pd.Series:
    return metric_table(examples, class_names=NAMES, **({"seed": 7} | arguments)).iloc[0]


def test_rates_equal_those_of_sklearn():
    examples = _examples()
    row = _measure(examples)
    label, predicted = examples["label"], examples["adversarial_prediction"]
    right = examples["clean_prediction"] == label
    assert row["n"] == 200
    assert row["clean_accuracy"] == accuracy_score(label, examples["clean_prediction"])
    assert row["robust_accuracy"] == accuracy_score(label, predicted)
    assert row["asr_n"] == right.sum() < 200
    assert row["asr"] == pytest.approx((predicted != label)[right].mean())
    assert row["precision"] == pytest.approx(precision_score(label, predicted, average="macro"))
    assert row["recall"] == pytest.approx(recall_score(label, predicted, average="macro"))
    scores = np.stack(examples["adversarial_probabilities"].tolist()).astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)  # sklearn wants sums of 1 to more digits than float32 has
    assert row["auc"] == pytest.approx(roc_auc_score(label, scores, multi_class="ovr", average="macro"), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_precision_and_recall_equal_sklearn_for_any_confusion(pairs):
    label, predicted = np.array(pairs).T
    present = np.unique(label)
    precision, recall = macro_precision_recall(label, predicted, 5, seed=0)
    expected = {"labels": present, "average": "macro", "zero_division": 0}
    assert precision[0] == pytest.approx(precision_score(label, predicted, **expected))
    assert recall[0] == pytest.approx(recall_score(label, predicted, **expected))
    for rate, low, high in (precision, recall):
        assert 0 <= low <= rate <= high <= 1 + 1e-12


def test_proportions_carry_wilson_intervals_at_the_level_asked_for():
    examples = _examples()
    hits = int((examples["label"] == examples["adversarial_prediction"]).sum())
    for level in (0.95, 0.8):
        row = _measure(examples, confidence_level=level)
        z, p, n = norm.ppf(0.5 + level / 2), hits / 200, 200  # Wilson 1927, written out
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        assert (row["robust_accuracy_low"], row["robust_accuracy_high"]) == pytest.approx(
            (centre - half, centre + half)
        )
        asr = binomtest(int(examples["success"].sum()), int(row["asr_n"])).proportion_ci(level, method="wilson")
        assert (row["asr_low"], row["asr_high"]) == pytest.approx((asr.low, asr.high))


def _delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area and variance by the definition of DeLong et al. (1988), every pair compared."""
    psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative] for x in positive])
    s10, s01 = psi.mean(axis=1).var(ddof=1), psi.mean(axis=0).var(ddof=1)
    return float(psi.mean()), s10 / len(positive) + s01 / len(negative)


def test_the_auc_of_two_classes_is_delong_exactly_ties_included():
    rng = np.random.default_rng(1)
    label = np.array([1] * 23 + [0] * 41)
    score = np.round(np.clip(rng.normal(0.4 + 0.15 * label, 0.2), 0, 1), 1)  # one decimal: many ties
    area, variance = _delong(score[label == 1], score[label == 0])
    got = macro_auc(label, np.stack([1 - score, score], axis=1))
    half = norm.ppf(0.975) * np.sqrt(variance)
    assert got == pytest.approx((area, area - half, area + half), abs=1e-12)


def test_the_variance_of_a_macro_auc_counts_that_classes_share_their_images():
    examples = _examples(400)
    label, scores = examples["label"].to_numpy(), np.stack(examples["adversarial_probabilities"].tolist())
    area, _, high = macro_auc(label, scores)
    assert area == pytest.approx(np.mean([_delong(scores[label == k, k], scores[label != k, k])[0] for k in range(4)]))
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(400):
        rows = rng.integers(0, 400, 400)
        resampled.append(macro_auc(label[rows], scores[rows])[0])
    assert (high - area) / norm.ppf(0.975) == pytest.approx(np.std(resampled), rel=0.12)


@pytest.mark.parametrize("order", [[1, 0], [0, 1]], ids=["perfect", "inverted"])
def test_the_auc_stays_between_nought_and_one(order):
    label = np.array([0, 0, 0, 1, 1, 1])
    area, low, high = macro_auc(label, np.eye(2)[label][:, order])
    assert (area, low, high) == ((1.0, 1.0, 1.0) if order == [0, 1] else (0.0, 0.0, 0.0))
    noisy = np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
    area, low, high = macro_auc(label, np.stack([1 - noisy, noisy], axis=1))
    assert 0 <= low < area < high == 1.0


def test_the_auc_is_unknown_rather_than_wrong():
    label, scores = np.array([0, 0, 1, 1, 2]), np.full((5, 3), 1 / 3)
    assert np.isnan(macro_auc(label, None)).all()
    assert np.isnan(macro_auc(np.zeros(5, int), scores)).all()
    area, low, high = macro_auc(label, scores)  # class 2 has a single image, so no variance
    assert area == pytest.approx(0.5)
    assert np.isnan([low, high]).all()
    examples = _examples()
    examples["adversarial_probabilities"] = None
    assert np.isnan(_measure(examples)[["auc", "auc_low", "auc_high"]].astype(float)).all()


def test_the_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    joint = np.array([[0.30, 0.05, 0.05], [0.04, 0.20, 0.06], [0.02, 0.03, 0.25]])
    truth = (np.diag(joint) / joint.sum(axis=0)).mean(), (np.diag(joint) / joint.sum(axis=1)).mean()
    held = np.zeros(2)
    for trial in range(200):
        cells = rng.choice(9, 150, p=joint.ravel())
        intervals = macro_precision_recall(cells // 3, cells % 3, 3, seed=trial)
        held += [low <= value <= high for value, (_, low, high) in zip(truth, intervals, strict=True)]
    assert ((held / 200 > 0.90) & (held / 200 < 0.99)).all()


def test_a_bootstrap_that_is_biased_away_from_the_estimate_still_holds_it():
    label = np.repeat(np.arange(30), 2)
    predicted = np.where(np.arange(60) % 2, 30, label)  # each class hit once: resamples lose some, and their precision
    (precision, low, high), _ = macro_precision_recall(label, predicted, 31, seed=0)
    assert low < precision == high == 1


def test_resampling_in_parts_changes_nothing_but_memory(monkeypatch):
    label, predicted = np.random.default_rng(0).integers(0, 5, (2, 60))
    whole = macro_precision_recall(label, predicted, 5, seed=1)
    monkeypatch.setattr(module, "_COUNTS_AT_ONCE", 7 * 25)
    assert macro_precision_recall(label, predicted, 5, seed=1) == whole


def test_the_same_seed_gives_the_same_numbers_whatever_stands_beside():
    one, other = _examples(), _examples(target="shallow_net", seed=4)
    both = metric_table(pd.concat([other, one]), class_names=NAMES, seed=7)
    assert both["target"].tolist() == ["shallow_net", "le_net"]
    pd.testing.assert_series_equal(both.iloc[1], _measure(one), check_names=False)
    assert _measure(one, seed=8)["precision_low"] != _measure(one)["precision_low"]


def test_every_column_is_described_and_distances_are_summarised():
    examples = _examples()
    row = _measure(examples)
    assert list(row.index) == list(METRIC_COLUMNS)
    assert all(METRIC_COLUMNS.values())
    assert row["l2_iqr"] == pytest.approx(examples["l2"].quantile(0.75) - examples["l2"].quantile(0.25))
    assert row["l2_stdev"] == pytest.approx(np.std(examples["l2"]))
    for name, function in {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}.items():
        assert row[f"wasserstein_{name}"] == pytest.approx(function(examples["wasserstein"].to_numpy()))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rates_lie_in_their_intervals_and_fit_each_other(data):
    n = data.draw(st.integers(1, 12))
    classes = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    examples = _examples(n)
    label, predicted = (np.array(data.draw(classes)) for _ in range(2))
    clean = label if data.draw(st.booleans()) else np.array(data.draw(classes))
    aim = examples["target_class"]
    examples = examples.assign(
        label=label,
        clean_prediction=clean,
        adversarial_prediction=predicted,
        success=evasion_success(label, clean, predicted, aim, targeted=False),
        adversarial_probabilities=pd.Series(list(np.eye(4, dtype=np.float32)[predicted]), dtype=object),
    )
    row = _measure(examples)
    assert row["n"] == n
    assert row["asr_n"] == round(row["clean_accuracy"] * n)
    for rate in RATES:
        low, value, high = row[[f"{rate}_low", rate, f"{rate}_high"]]
        if np.isnan([low, value, high]).any():
            assert rate == "auc" or (rate == "asr" and row["asr_n"] == 0)
        else:
            assert -1e-12 <= low <= value + 1e-12 <= high + 2e-12 <= 1 + 3e-12
    if row["clean_accuracy"] == 1:
        assert row["asr"] == pytest.approx(1 - row["robust_accuracy"])


def test_robust_accuracy_counts_images_that_were_wrong_before():
    examples = _examples(4)
    examples[["clean_prediction", "adversarial_prediction"]] = [[0, 0], [1, 2], [3, 2], [0, 0]]
    examples["adversarial_probabilities"] = pd.Series(list(np.eye(4, dtype=np.float32)[[0, 2, 2, 0]]), dtype=object)
    examples["success"] = pd.array([False, True, pd.NA, pd.NA], dtype="boolean")
    row = _measure(examples)
    assert (row["robust_accuracy"], row["asr"], row["asr_n"]) == (0.5, 0.5, 2)


def test_targeted_asr_is_over_the_images_of_other_classes():
    examples = _examples()
    aim = pd.Series(1, index=examples.index, dtype="Int64").mask(examples["label"] == 1)
    label, predicted = examples["label"].to_numpy(), examples["adversarial_prediction"].to_numpy()
    examples["target_class"] = aim
    examples["success"] = evasion_success(label, label, predicted, aim, targeted=True)
    row = _measure(examples)
    assert row["asr_n"] == 150
    assert row["asr"] == pytest.approx((predicted[label != 1] == 1).mean())


def test_a_targeted_attack_on_images_of_its_own_class_alone_has_no_asr():
    examples = _examples().query("label == 1").assign(success=lambda table: table["success"].mask(table["label"] == 1))
    row = _measure(examples)
    assert row["asr_n"] == 0
    assert np.isnan(row[["asr", "asr_low", "asr_high"]].astype(float)).all()


@pytest.mark.parametrize("column", ["adversarial_prediction", "clean_prediction", "label", "margin", "l2"])
def test_a_nan_is_refused_by_column(column):
    examples = _examples().astype({column: float})
    examples.loc[17, column] = np.nan
    with pytest.raises(NonFiniteError, match=rf"1 of 200 rows have a non-finite or empty {column}"):
        _measure(examples)


def test_a_nan_probability_is_refused():
    examples = _examples()
    examples["adversarial_probabilities"].iloc[3][1] = np.nan
    with pytest.raises(NonFiniteError, match="non-finite adversarial_probabilities"):
        _measure(examples)


def test_doubled_rows_are_refused_and_named():
    examples = _examples()
    with pytest.raises(ValueError, match=r"1 rows appear twice, first 000005 \| le_net \| fgm_0.3 \| le_net \| none"):
        _measure(pd.concat([examples, examples.iloc[5:6]]))


def test_mixed_seeds_are_refused():
    examples = _examples().assign(seed=[7] * 100 + [8] * 100)
    with pytest.raises(ValueError, match=r"seeds \[7, 8\], expected 7"):
        _measure(examples)
    assert _measure(_examples().assign(seed=7))["seed"] == 7


def test_a_batch_dropped_for_one_target_is_refused():
    short = _examples(target="shallow_net").iloc[:150]
    with pytest.raises(ValueError, match=r"le_net\|none\|False 200, shallow_net\|none\|False 150"):
        _measure(pd.concat([_examples(), short]))


def test_swapped_labels_are_refused():
    swap = {0: 1, 1: 0, 2: 2, 3: 3}
    examples = _examples()
    examples["label"] = examples["label"].map(swap)
    with pytest.raises(ValueError, match="success does not follow"):
        _measure(examples)
    other = _examples(target="shallow_net")
    other["label"] = other["label"].map(swap)
    with pytest.raises(ValueError, match="two labels"):
        _measure(pd.concat([_examples(), other]))


def test_probabilities_in_another_class_order_are_refused():
    examples = _examples()
    column = examples["adversarial_probabilities"]
    examples["adversarial_probabilities"] = pd.Series([row[[1, 0, 2, 3]] for row in column], dtype=object)
    with pytest.raises(ValueError, match="order the classes otherwise"):
        _measure(examples)
    examples["adversarial_probabilities"] = pd.Series([row[:3] for row in column], dtype=object)
    with pytest.raises(ValueError, match="must hold 4 numbers"):
        _measure(examples)


def test_a_class_without_a_name_is_refused():
    with pytest.raises(ValueError, match="beyond the 3 that are named"):
        metric_table(_examples(), class_names=NAMES[:3], seed=7)


def test_an_empty_or_partial_table_is_refused():
    with pytest.raises(ValueError, match="0 rows"):
        _measure(_examples().iloc[:0])
    with pytest.raises(ValueError, match=r"without the columns \['margin'\]"):
        _measure(_examples().drop(columns="margin"))


def _metrics(rows: list[tuple[str, str, str, float]], seed: int = 7) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["source", "attack", "target", "robust_accuracy"])
    table = table.assign(
        defence="none",
        adaptive=False,
        n=100,
        seed=seed,
        clean_accuracy=[0.9 if t == "le" else 0.8 for t in table.target],
    )
    for name in ("clean_accuracy", "robust_accuracy"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.05, table[name] + 0.05
    return table


CELLS = [
    ("sh", "fgm_0.3", "le", 0.4),
    ("sh", "fgm_0.3", "sh", 0.1),
    ("le", "fgm_0.3", "le", 0.2),
    ("le", "fgm_0.1", "le", 0.6),
]


def test_the_transfer_matrix_has_its_white_box_cells_on_the_diagonal_and_nan_where_one_is_missing():
    matrix = transfer_matrix(_metrics(CELLS), "fgm_0.3")
    assert (list(matrix.index), list(matrix.columns)) == (["sh", "le"], ["sh", "le"])
    np.testing.assert_array_equal(matrix, [[0.1, 0.4], [np.nan, 0.2]])
    assert transfer_matrix(_metrics(CELLS), "fgm_0.3", "clean_accuracy").loc["sh", "le"] == 0.9


def test_a_transfer_matrix_of_two_runs_or_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sh \| le appears twice, in a table of the seeds \[7, 8\]"):
        transfer_matrix(pd.concat([_metrics(CELLS), _metrics(CELLS, seed=8)]), "fgm_0.3")
    with pytest.raises(ValueError, match=r"nothing measured for pgd .* only for \['fgm_0.1"):
        transfer_matrix(_metrics(CELLS), "pgd")
    with pytest.raises(ValueError, match="no column 'robustness'"):
        transfer_matrix(_metrics(CELLS), "fgm_0.3", "robustness")


def _configs(**eps_of: float) -> dict[str, SimpleNamespace]:
    return {key: SimpleNamespace(eps=eps, norm="inf") for key, eps in eps_of.items()}


FGM = _configs(**{"fgm_0.3": 0.3, "fgm_0.1": 0.1})


def test_a_security_curve_starts_at_the_clean_accuracy_and_rises_in_eps():
    curve = security_curve(_metrics(CELLS), FGM)
    le = curve[(curve["source"] == "le") & (curve["target"] == "le")]
    assert list(curve.columns) == [
        *("source", "target", "family", "eps", "robust_accuracy", "low", "high", "n", "seed")
    ]
    assert le["family"].unique().tolist() == ["fgm"]
    assert le["eps"].tolist() == [0.0, 0.1, 0.3]
    assert le["robust_accuracy"].tolist() == [0.9, 0.6, 0.2]
    assert le["low"].tolist() == pytest.approx([0.85, 0.55, 0.15])
    assert le["high"].tolist() == pytest.approx([0.95, 0.65, 0.25])
    assert le["seed"].tolist() == [pd.NA, 7, 7]
    assert len(curve) == 4 + 3  # one clean row a curve: sh on le, sh on sh, le on le


@pytest.mark.parametrize(
    ("key", "eps", "family"),
    [("fgm_8", 8.0, "fgm"), ("fgm_1e-05", 1e-5, "fgm"), ("l2_fgm_0.3_2", 0.3, "l2_fgm_2"), ("once", 0.3, "once"),
     ("fgm@eps=0.3@norm=2", 0.3, "fgm@norm=2"), ("0.3", 0.3, "0.3")],
)  # fmt: skip
def test_a_family_is_the_attack_key_without_eps(key, eps, family):
    curve = security_curve(_metrics([("le", key, "le", 0.5)]), _configs(**{key: eps}))
    assert curve["family"].tolist() == [family, family]


def test_attacks_of_several_norms_are_not_joined_to_one_curve():
    configs = {"fgm_0.3": SimpleNamespace(eps=0.3, norm="inf"), "fgm_2": SimpleNamespace(eps=2.0, norm=2)}
    curve = security_curve(_metrics([("le", "fgm_0.3", "le", 0.2), ("le", "fgm_2", "le", 0.5)]), configs)
    assert curve["family"].tolist() == ["fgm norm 2", "fgm norm 2", "fgm norm inf", "fgm norm inf"]


def test_attacks_without_eps_have_no_curve_and_unknown_ones_are_refused():
    metrics = _metrics([("le", "pixel", "le", 0.5)])
    assert security_curve(metrics, {"pixel": SimpleNamespace(th=1)}).empty
    assert security_curve(metrics.iloc[:0], {}).empty
    with pytest.raises(ValueError, match=r"no attack config for \['pixel'\]"):
        security_curve(metrics, FGM)


def test_a_security_curve_over_two_models_or_two_runs_is_refused():
    metrics = _metrics(CELLS)
    with pytest.raises(ValueError, match=r"sh \| le \| fgm \| 0.3 appears twice"):
        security_curve(pd.concat([metrics, _metrics(CELLS, seed=8)]), FGM)
    metrics.loc[3, "clean_accuracy"] = 0.85
    with pytest.raises(ValueError, match=r"clean accuracies beside \['fgm_0.3', 'fgm_0.1'\] differ"):
        security_curve(metrics, FGM)


def _judged(*rows: tuple[str, str, str, bool, float]) -> pd.DataFrame:
    """Metric rows of source, target, defence, adaptive and robust accuracy, under one attack."""
    table = pd.DataFrame(rows, columns=["source", "target", "defence", "adaptive", "robust_accuracy"])
    rate = table["robust_accuracy"]
    clean = {f"clean_accuracy{end}": 0.9 for end in ("", "_low", "_high")}
    return table.assign(
        attack="pgd", n=100, seed=3, robust_accuracy_low=rate - 0.1, robust_accuracy_high=rate + 0.1, **clean
    )


def test_a_defence_stands_beside_the_model_without_it_oblivious_and_adaptive():
    table = _judged(
        ("a", "a", "none", False, 0.2),
        ("a", "b", "none", False, 0.7),
        ("a", "a", "jpeg", False, 0.6),
        ("a", "a", "jpeg", True, 0.3),
        ("a", "a", "noise", False, 0.5),
        ("a", "a", "noise", True, 0.25),
    )
    compared = defence_comparison(table)
    three = ["robust_accuracy", "oblivious", "adaptive"]
    assert compared[["architecture", "attack", "defence", *three]].to_numpy().tolist() == [
        ["a", "pgd", "jpeg", 0.2, 0.6, 0.3],
        ["a", "pgd", "noise", 0.2, 0.5, 0.25],
    ]
    for rate in three:
        np.testing.assert_allclose(compared[f"{rate}_low"], compared[rate] - 0.1)
        np.testing.assert_allclose(compared[f"{rate}_high"], compared[rate] + 0.1)


def test_a_defence_that_was_judged_one_way_alone_has_an_empty_place():
    compared = defence_comparison(_judged(("a", "a", "none", False, 0.2), ("a", "a", "jpeg", False, 0.6)))
    assert compared["oblivious"].tolist() == [0.6]
    assert compared["adaptive"].isna().all()
