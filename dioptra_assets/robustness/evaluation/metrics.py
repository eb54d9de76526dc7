"""The metric table: the rates of an example table, each with its interval, and the views over many of them."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import pandas as pd

from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS
from dioptra_assets.robustness.evaluation.examples import (
    EXAMPLE_COLUMNS,
    KEYS,
    NO_DEFENCE,
    check_examples,
    stack_probabilities,
)
from dioptra_assets.robustness.seeds import derive_seed

RESAMPLES = 1000
_COUNTS_AT_ONCE = 2**22  # 32 MB of resampled counts
RATES: dict[str, str] = {
    "clean_accuracy": "share of the n untouched images classified right",
    "robust_accuracy": "share of all n attacked images classified as their true label",
    "asr": "share of the asr_n eligible images on which the attack succeeded; empty when asr_n is 0",
    "precision": "precision on the attacked images, mean over the classes that have images; 0 for one never predicted",
    "recall": "recall on the attacked images, mean over the classes that have images",
    "auc": "area under the ROC curve on the attacked images, one class against the rest, mean over all classes; "
    "empty without probabilities or when a class has no image",
}
_INTERVALS = {
    **dict.fromkeys(("clean_accuracy", "robust_accuracy", "asr"), "95 %, Wilson score"),
    **dict.fromkeys(("precision", "recall"), f"95 %, bootstrap of {RESAMPLES} resamples, widened to hold the estimate"),
    "auc": "95 %, DeLong; empty when a class has a single image",
}
_STATISTICS = {"mean": "mean", "median": "median", "stdev": "population standard deviation"}
_STATISTICS |= {"iqr": "interquartile range", "min": "smallest", "max": "largest"}
METRIC_COLUMNS: dict[str, str] = {
    **{key: EXAMPLE_COLUMNS[key] for key in KEYS},
    "n": "images evaluated",
    "seed": "seed of the cell, which also drives the resampling",
    "asr_n": "images that count in asr: untargeted, those classified right before the attack; "
    "targeted, those whose true class is not the target class",
    **{
        name: text
        for rate, description in RATES.items()
        for name, text in (
            (rate, f"{description}, 0 to 1"),
            (f"{rate}_low", f"lower bound of the interval of {rate} ({_INTERVALS[rate]}), 0 to 1"),
            (f"{rate}_high", f"upper bound of the interval of {rate} ({_INTERVALS[rate]}), 0 to 1"),
        )
    },
    **{
        f"{name}_{statistic}": f"{words} over the images of: {description}"
        for name, description in DISTANCE_COLUMNS.items()
        for statistic, words in _STATISTICS.items()
    },
}

Estimate = tuple[float, float, float]
_UNKNOWN: Estimate = (np.nan, np.nan, np.nan)


def metric_table(
    examples: pd.DataFrame, *, class_names: Sequence[str], seed: int, confidence_level: float = 0.95
) -> pd.DataFrame:
    """Aggregate an example table.

    Args:
        examples: rows of `example_table`, of one or more sources, attacks, targets and defences.
        class_names: the classes, in the order that gives labels and probabilities their meaning.
        seed: the seed of the cell; the same table and seed give the same numbers, whatever other rows stand beside.
        confidence_level: coverage of the intervals, above 0 and below 1.

    Returns:
        One row per (source, attack, target, defence, adaptive), with the columns of `METRIC_COLUMNS`. Intervals:
        Wilson score for proportions (Wilson 1927), percentiles of a multinomial bootstrap of the confusion matrix for
        macro precision and recall, DeLong et al. (1988) for the AUC. Those two have no width where every image is
        classified right, or every one wrong: read the Wilson interval of the accuracy there.

    Raises:
        NonFiniteError: when a prediction, confidence, margin or distance is NaN.
        ValueError: when the table is empty, lacks a column, holds an image twice for one target and defence, has other
            images for one target than for another, another seed than `seed`, classes that `class_names` does not have,
            or columns that contradict each other.
    """
    check_examples(examples, len(class_names), seed)
    rows, table = [], cast(Any, examples)
    for key, group in table.groupby(KEYS, sort=False):
        row = _row(group, len(class_names), derive_seed(seed, "bootstrap", *map(str, key)), confidence_level)
        rows.append(dict(zip(KEYS, key, strict=True)) | {"seed": seed} | row)
    return pd.DataFrame(rows)[list(METRIC_COLUMNS)]


def _row(group: pd.DataFrame, classes: int, seed: int, level: float) -> dict[str, Any]:
    n = len(group)
    label, prediction = group["label"].to_numpy(np.int64), group["adversarial_prediction"].to_numpy(np.int64)
    success = group["success"].dropna()
    precision, recall = macro_precision_recall(label, prediction, classes, seed, level)
    estimates = {
        "clean_accuracy": proportion(int((group["clean_prediction"].to_numpy(np.int64) == label).sum()), n, level),
        "robust_accuracy": proportion(int((prediction == label).sum()), n, level),
        "asr": proportion(int(success.sum()), len(success), level),
        "precision": precision,
        "recall": recall,
        "auc": macro_auc(label, stack_probabilities(group, classes), level),
    }
    row: dict[str, Any] = {"n": n, "asr_n": len(success)}
    for name, estimate in estimates.items():
        row.update(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
    for name in DISTANCE_COLUMNS:
        values = group[name].to_numpy(np.float64)
        low, quarter, half, three_quarters, high = np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))
        numbers = (values.mean(), half, values.std(), three_quarters - quarter, low, high)
        row.update(zip((f"{name}_{statistic}" for statistic in _STATISTICS), map(float, numbers), strict=True))
    return row


def proportion(hits: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion and its Wilson score interval; three NaN when n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return _UNKNOWN
    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return hits / n, float(interval.low), float(interval.high)


def macro_precision_recall(
    label: np.ndarray, prediction: np.ndarray, classes: int, seed: int, level: float = 0.95
) -> tuple[Estimate, Estimate]:
    """Precision and recall, each the mean over the classes that have images, with a bootstrap interval.

    A class that is never predicted has precision 0. To resample n images is to draw a confusion matrix from the
    multinomial distribution of the observed one, so only its non-empty cells are drawn. Ratios are biased in small
    samples: the percentile interval is widened where it would leave the estimate out.

    Args:
        label: int [n], positions in the classes.
        prediction: int [n].
        classes: how many classes there are.
        seed: of the resampling.
        level: coverage.

    Returns:
        (precision, low, high), (recall, low, high).
    """
    from scipy.sparse import csr_array

    cells, counts = np.unique(label * classes + prediction, return_counts=True)
    truth, guess = np.divmod(cells, classes)
    ones, position, shape = np.ones(len(cells)), np.arange(len(cells)), (len(cells), classes)
    by_truth, by_guess = csr_array((ones, (position, truth)), shape), csr_array((ones, (position, guess)), shape)
    right = csr_array(((truth == guess).astype(float), (position, truth)), shape)

    def macro(drawn: np.ndarray) -> np.ndarray:
        support, predicted, hits = drawn @ by_truth, drawn @ by_guess, drawn @ right
        ratios = [np.divide(hits, of, out=np.zeros_like(hits), where=of > 0) for of in (predicted, support)]
        # A class without images has no hits, so it adds nothing to the sum and is left out of the count.
        return np.stack([ratio.sum(axis=1) for ratio in ratios], axis=1) / (support > 0).sum(axis=1, keepdims=True)

    rng = np.random.default_rng(seed)
    step = max(1, min(RESAMPLES, _COUNTS_AT_ONCE // len(cells)))  # the draws are the same for any step
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    share = counts / len(label)
    resampled = np.concatenate([macro(rng.multinomial(len(label), share, size)) for size in sizes])
    estimate = macro(counts[None])[0]
    low, high = np.quantile(resampled, (0.5 - level / 2, 0.5 + level / 2), axis=0)
    bounds = np.stack([estimate, np.minimum(low, estimate), np.maximum(high, estimate)], axis=1).tolist()
    return tuple(bounds[0]), tuple(bounds[1])


def macro_auc(label: np.ndarray, probabilities: np.ndarray | None, level: float = 0.95) -> Estimate:
    """Area under the ROC curve, one class against the rest, mean over all classes, with an interval.

    The areas of all classes come from the same images, so each image's influence on their mean is the mean of its
    structural components (DeLong, DeLong and Clarke-Pearson 1988, section 2); for two classes the variance is exactly
    theirs. Ties count a half.

    Args:
        label: int [n], positions in the classes.
        probabilities: float [n, classes], or None.
        level: coverage.

    Returns:
        (area, low, high), the bounds clipped to [0, 1]. All NaN without probabilities, or when a class has no images
        or all of them; NaN bounds when a class, or the rest, is a single image.
    """
    if probabilities is None:
        return _UNKNOWN
    (n, classes), sizes = probabilities.shape, np.bincount(label, minlength=probabilities.shape[1])
    if (sizes == 0).any() or (sizes == n).any():
        return _UNKNOWN
    areas, influence = np.zeros(classes), np.zeros(n)
    for k in range(classes):
        of_class = label == k
        m, rest = int(sizes[k]), n - int(sizes[k])
        positive, negative = np.sort(probabilities[of_class, k]), np.sort(probabilities[~of_class, k])
        beaten = _rank(negative, probabilities[of_class, k]) / rest
        beaten_by = 1.0 - _rank(positive, probabilities[~of_class, k]) / m
        areas[k] = beaten.mean()
        influence[of_class] += (beaten - areas[k]) / np.sqrt(m * max(m - 1, 1)) / classes
        influence[~of_class] += (beaten_by - areas[k]) / np.sqrt(rest * max(rest - 1, 1)) / classes
    area = float(areas.mean())
    if (sizes == 1).any() or (sizes == n - 1).any():  # a single image has no variance
        return area, np.nan, np.nan
    half = NormalDist().inv_cdf(0.5 + level / 2) * float(np.sqrt((influence**2).sum()))
    return area, max(area - half, 0.0), min(area + half, 1.0)


def _rank(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many of `ordered` each value exceeds, ties a half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2.0


def defence_comparison(metrics: pd.DataFrame) -> pd.DataFrame:
    """What each defence is worth on the model that was attacked: without it, oblivious and adaptive, side by side.

    Args:
        metrics: rows of `metric_table`, of any cells.

    Returns:
        One row an architecture, attack and defence: `architecture`, `attack`, `defence`, `n`, `seed`,
        `clean_accuracy` (behind the defence), and `robust_accuracy` of the model without it, `oblivious` and
        `adaptive` behind it: each with `_low` and `_high`. NaN where a row is missing.
    """
    attacked: Any = metrics[metrics["source"] == metrics["target"]]
    cell = ["source", "attack"]
    parts = {
        "robust_accuracy": attacked[attacked["defence"] == NO_DEFENCE],
        "oblivious": attacked[(attacked["defence"] != NO_DEFENCE) & ~attacked["adaptive"]],
        "adaptive": attacked[(attacked["defence"] != NO_DEFENCE) & attacked["adaptive"]],
    }
    ends = ("", "_low", "_high")
    table: Any = parts["oblivious"][[*cell, "defence", "n", "seed", *(f"clean_accuracy{end}" for end in ends)]]
    for name, part in parts.items():
        keys = cell if name == "robust_accuracy" else [*cell, "defence"]
        renamed = part.rename(columns={"adaptive": "_"}).rename(
            columns={f"robust_accuracy{end}": f"{name}{end}" for end in ends}
        )
        table = table.merge(renamed[[*keys, *(f"{name}{end}" for end in ends)]], on=keys, how="left")
    return table.rename(columns={"source": "architecture"})[
        [
            "architecture",
            "attack",
            "defence",
            "n",
            *(f"{name}{end}" for name in ("clean_accuracy", *parts) for end in ends),
            "seed",
        ]
    ]


def transfer_matrix(
    metrics: pd.DataFrame, attack: str, value: str = "robust_accuracy", *, defence: str = NO_DEFENCE
) -> pd.DataFrame:
    """One number of one attack, for every source (rows) on every target (columns), sources first in both.

    Args:
        metrics: rows of `metric_table`, of any cells.
        attack: key of the attack config.
        value: a column of `METRIC_COLUMNS`.
        defence: which defence the targets stand behind; attacks that know it are left out.

    Returns:
        float [sources, targets], NaN where a cell is missing.

    Raises:
        ValueError: when there is no such attack or column, or a source and target meet twice (mixed runs or seeds).
    """
    if value not in metrics:
        raise ValueError(f"transfer matrix: no column {value!r} in the metric table")
    chosen: Any = metrics[(metrics["attack"] == attack) & (metrics["defence"] == defence) & ~metrics["adaptive"]]
    if chosen.empty:
        known = sorted(set(metrics["attack"] + " (defence " + metrics["defence"] + ")"))
        raise ValueError(f"transfer matrix: nothing measured for {attack} (defence {defence}), only for {known}")
    _refuse_doubled(chosen, ["source", "target"], f"transfer matrix of {attack}")
    sources, evaluated = list(dict.fromkeys(chosen["source"])), set(chosen["target"])
    targets = list(dict.fromkeys([*(source for source in sources if source in evaluated), *chosen["target"]]))
    return chosen.pivot(index="source", columns="target", values=value).reindex(index=sources, columns=targets)


def security_curve(
    metrics: pd.DataFrame, configs: Mapping[str, Any], *, defence: str = NO_DEFENCE, adaptive: bool = False
) -> pd.DataFrame:
    """Robust accuracy against eps, one curve per source, target and family of attack configs.

    A family is the attack configs whose keys differ in eps alone: `fgm_0.1` and `fgm_0.3` are `fgm`. Where their norms
    differ all the same, each norm is a family, because eps then counts something else.

    Args:
        metrics: rows of `metric_table`, of any cells.
        configs: attack config by key, for every attack in `metrics`; those without `eps` have no curve.
        defence: which defence the targets stand behind.
        adaptive: whether the attacks know it.

    Returns:
        Rows by source, target, family and rising eps: `source`, `target`, `family`, `eps` (in the units of the norm),
        `robust_accuracy`, `low`, `high`, `n`, `seed`. Each curve begins with eps 0, the clean accuracy, without a seed.

    Raises:
        ValueError: when an attack has no config, one point of a curve was measured twice, or the clean accuracies of
            one curve differ.
    """
    chosen: Any = metrics[(metrics["defence"] == defence) & (metrics["adaptive"] == adaptive)]
    unknown = sorted(set(chosen["attack"]) - set(configs))
    if unknown:
        raise ValueError(f"security curve: no attack config for {unknown}")
    points = chosen.loc[[hasattr(configs[key], "eps") for key in chosen["attack"]]].copy()
    points["eps"] = points["attack"].map(lambda key: float(configs[key].eps))
    points["family"] = points["attack"].map(lambda key: _without_eps(key, configs[key].eps))
    norm = points["attack"].map(lambda key: str(getattr(configs[key], "norm", "")))
    mixed = norm.groupby(points["family"]).transform("nunique") > 1
    points["family"] = points["family"].mask(mixed, points["family"] + " norm " + norm)
    curve = ["source", "target", "family"]
    _refuse_doubled(points, [*curve, "eps"], "security curve")
    clean = points.drop_duplicates([*curve, "clean_accuracy", "n"]).assign(eps=0.0, seed=pd.NA)
    if clean.duplicated(curve).any():
        attacks = clean.loc[clean.duplicated(curve, keep=False), "attack"].tolist()
        raise ValueError(
            f"security curve: the clean accuracies beside {attacks} differ, so they were measured on different models "
            f"or images: materialize these cells again"
        )
    parts = [
        part.assign(robust_accuracy=part[rate], low=part[f"{rate}_low"], high=part[f"{rate}_high"])
        for part, rate in ((clean, "clean_accuracy"), (points, "robust_accuracy"))
    ]
    table = pd.concat([part.astype({"seed": "Int64"}) for part in parts]).sort_values(
        [*curve, "eps"], ignore_index=True
    )
    return table[[*curve, "eps", "robust_accuracy", "low", "high", "n", "seed"]]


def _without_eps(key: str, eps: float) -> str:
    """The attack key less the part that says eps: `fgm_0.3_2` -> `fgm_2`, `fgm@eps=0.3@norm=2` -> `fgm@norm=2`."""
    separator, texts = ("@", {f"eps={eps}", f"eps={eps:g}"}) if "@" in key else ("_", {f"{eps}", f"{eps:g}"})
    parts = key.split(separator)
    at = next((i for i, part in enumerate(parts) if i and part in texts), len(parts))
    return separator.join(parts[:at] + parts[at + 1 :])


def _refuse_doubled(table: Any, keys: list[str], what: str) -> None:
    doubled = table[table.duplicated(keys)]
    if len(doubled):
        first = " | ".join(map(str, doubled[keys].iloc[0]))
        raise ValueError(f"{what}: {first} appears twice, in a table of the seeds {sorted(set(table['seed']))}")
