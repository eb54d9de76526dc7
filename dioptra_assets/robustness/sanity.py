"""Sanity checks of an evaluation: what holds if the attacks work (Carlini et al. 2019, arXiv 1902.06705, section 5).

A check that fails says that an attack, not a model, is weak: the robust accuracies beside it are too high. A rate is
held to be larger than another where it is by more than `Z` standard errors of their difference.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from dioptra_assets.robustness.examples import NO_DEFENCE
from dioptra_assets.robustness.image_set import ImageSet, Pixels

Z = 2.0
# Single-step and iterative attacks of one loss, by method.
SINGLE_STEP, ITERATIVE, BLACK_BOX = {"fgm"}, {"bim", "pgd"}, {"square"}
# Half the pixel range: every image can be made grey.
LARGE_EPS = 0.5
ZERO_GRADIENT_SHARE = 0.01

CHECKS: dict[str, str] = {
    "iterative_attacks_are_no_weaker": "An iterative attack does at least as well as a single step of the same size.",
    "success_grows_with_eps": "A larger eps never leaves a higher robust accuracy.",
    "a_large_eps_reaches_chance": f"An iterative attack with eps of {LARGE_EPS} or more leaves no more than guessing.",
    "transferred_attacks_are_no_stronger": "Images made on another model do no better than those made on the model.",
    "black_box_attacks_are_no_stronger": "An attack that sees logits alone does no better than one with gradients.",
    "twice_the_steps_change_nothing": "An attack with twice the steps does no better.",
    "noise_is_weaker": "Random noise of the same size does no better than the attack.",
    "gradients_are_there": f"At most {ZERO_GRADIENT_SHARE:.0%} of the images have a gradient of zero.",
    "defences_are_judged_adaptive": "Every defence is judged oblivious and adaptive, and adaptive does no worse.",
}


@dataclass(frozen=True)
class SanityResult:
    """What one check found.

    Attributes:
        name: one of `CHECKS`.
        status: `not applicable` where the experiment has nothing to compare.
        compared: how many comparisons were made.
        findings: a sentence for each comparison that failed, or what would have to be declared to compare.
    """

    name: str
    status: Literal["passed", "failed", "not applicable"]
    compared: int
    findings: tuple[str, ...]


def sanity_checks(
    metrics: pd.DataFrame,
    configs: Mapping[str, Any],
    *,
    class_count: int,
    noise: pd.DataFrame,
    zero_gradients: Mapping[tuple[str, str], float],
    defences: Iterable[str] = (),
) -> list[SanityResult]:
    """Hold the metric tables of an experiment to `CHECKS`.

    Args:
        metrics: rows of `metrics.metric_table`, of any cells.
        configs: attack config by key, for every attack in `metrics`.
        class_count: guessing is right once in so many.
        noise: robust accuracy under random noise: `target`, `norm`, `eps`, `robust_accuracy` and `n`.
        zero_gradients: (source, attack) -> share of images whose gradient is zero, of white-box attacks.
        defences: the names of the experiment's defences.

    Returns:
        One result a check, in the order of `CHECKS`.
    """
    table = metrics[metrics["defence"] == NO_DEFENCE]
    points = [_Point.of(row, configs[row["attack"]]) for _, row in table.iterrows()]
    own = [point for point in points if point.source == point.target]
    found = {
        "iterative_attacks_are_no_weaker": _no_weaker(own, ITERATIVE, SINGLE_STEP, "an fgm and a pgd or bim"),
        "success_grows_with_eps": _grows(points, configs),
        "a_large_eps_reaches_chance": _reaches_chance(own, 1 / class_count),
        "transferred_attacks_are_no_stronger": _transferred(points),
        "black_box_attacks_are_no_stronger": _no_weaker(own, ITERATIVE, BLACK_BOX, "a square and a pgd or bim"),
        "twice_the_steps_change_nothing": _steps(own, configs),
        "noise_is_weaker": _noise(own, noise),
        "gradients_are_there": _gradients(zero_gradients),
        "defences_are_judged_adaptive": _adaptive(metrics, list(defences)),
    }
    return [_result(name, *found[name]) for name in CHECKS]


# Comparisons made, sentences on those that failed, and what is missing where none was made.
Found = tuple[int, list[str], str]


def _result(name: str, compared: int, failures: list[str], missing: str) -> SanityResult:
    if not compared and not failures:
        return SanityResult(name, "not applicable", 0, (missing,))
    return SanityResult(name, "failed" if failures else "passed", compared, tuple(failures))


@dataclass(frozen=True)
class _Point:
    source: str
    attack: str
    target: str
    method: str
    norm: str
    eps: float | None
    targeted: bool
    rate: float
    n: int

    @classmethod
    def of(cls, row: pd.Series, config: Any) -> "_Point":
        eps = getattr(config, "eps", None)
        # Square attacks are in Linf, and have no field for it.
        norm = str(getattr(config, "norm", "inf" if eps is not None else ""))
        return cls(
            row["source"],
            row["attack"],
            row["target"],
            config.method,
            norm,
            None if eps is None else float(eps),
            bool(getattr(config, "targeted", False)),
            float(row["robust_accuracy"]),
            int(row["n"]),
        )

    @property
    def size(self) -> tuple[str, float | None, bool]:
        return self.norm, self.eps, self.targeted

    def __str__(self) -> str:
        return f"{self.source}|{self.attack} on {self.target}: {self.rate:.1%}"


def larger(rate: float, n: int, other: float, other_n: int) -> bool:
    """Whether a rate of n images is larger than another by more than `Z` standard errors of their difference."""
    # Agresti and Caffo's estimate, which does not vanish at rates of 0 and 1.
    p, q = (rate * n + 1) / (n + 2), (other * other_n + 1) / (other_n + 2)
    return rate - other > Z * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (other_n + 2))


def _weaker(point: _Point, other: _Point) -> bool:
    return larger(point.rate, point.n, other.rate, other.n)


def _no_weaker(own: list[_Point], strong: set[str], weak: set[str], missing: str) -> Found:
    """Attacks of the strong methods against those of the weak ones, of the same size on the same model."""
    pairs = [
        (a, b)
        for a in own
        for b in own
        if a.method in strong and b.method in weak and a.source == b.source and a.size == b.size
    ]
    failures = [f"{a} is weaker than {b}" for a, b in pairs if _weaker(a, b)]
    return len(pairs), failures, f"declare {missing} of one norm and eps"


def _grows(points: list[_Point], configs: Mapping[str, Any]) -> Found:
    families: dict[Any, list[_Point]] = {}
    for point in points:
        if point.eps is not None and not point.targeted:
            rest = configs[point.attack].model_dump(exclude={"eps", "eps_step"})
            families.setdefault((point.source, point.target, repr(rest)), []).append(point)
    compared, failures = 0, []
    for family in families.values():
        ordered = sorted(family, key=lambda point: point.eps or 0.0)
        for smaller, bigger in pairwise(ordered):
            compared += 1
            # A single step may overshoot and climb again; for a transferred one that is no fault of the attack.
            if _weaker(bigger, smaller) and bigger.source == bigger.target:
                failures.append(f"{bigger} is weaker than {smaller}")
    return compared, failures, "declare an attack with several values of eps"


def _reaches_chance(own: list[_Point], chance: float) -> Found:
    large = [p for p in own if p.method in ITERATIVE and p.norm == "inf" and (p.eps or 0) >= LARGE_EPS]
    failures = [f"{p} is more than guessing, {chance:.1%}" for p in large if larger(p.rate, p.n, chance, p.n)]
    return len(large), failures, f"declare a pgd or bim with norm inf and eps {LARGE_EPS}"


def _transferred(points: list[_Point]) -> Found:
    own = {(p.attack, p.target): p for p in points if p.source == p.target}
    # Only gradients say where the model is weakest: black-box attacks have their own chances on either model.
    pairs = [
        (p, own[p.attack, p.target])
        for p in points
        if p.source != p.target and p.method in SINGLE_STEP | ITERATIVE and (p.attack, p.target) in own
    ]
    failures = [f"{own} is weaker than {p}" for p, own in pairs if _weaker(own, p)]
    return len(pairs), failures, "declare two architectures"


def _steps(own: list[_Point], configs: Mapping[str, Any]) -> Found:
    def rest(point: _Point) -> str:
        return repr(configs[point.attack].model_dump(exclude={"steps"}))

    stepped = [p for p in own if p.method in ITERATIVE]
    pairs = [
        (a, b)
        for a in stepped
        for b in stepped
        if a.source == b.source and rest(a) == rest(b) and configs[b.attack].steps == 2 * configs[a.attack].steps
    ]
    failures = [f"{b} is stronger than {a}: give the attack more steps" for a, b in pairs if _weaker(a, b)]
    return len(pairs), failures, "declare a pgd or bim with a value of steps and twice as many"


def _noise(own: list[_Point], noise: pd.DataFrame) -> Found:
    compared, failures = 0, []
    for _, row in noise.iterrows():
        for point in own:
            same = (point.target, point.norm, point.eps) == (row["target"], str(row["norm"]), float(row["eps"]))
            if same and point.method in SINGLE_STEP | ITERATIVE and not point.targeted:
                compared += 1
                if larger(point.rate, point.n, float(row["robust_accuracy"]), int(row["n"])):
                    failures.append(f"{point} is weaker than noise of the same size, {row['robust_accuracy']:.1%}")
    return compared, failures, "declare an fgm, bim or pgd in the norm inf or 2"


def _gradients(zero_gradients: Mapping[tuple[str, str], float]) -> Found:
    failures = [
        f"{source}|{attack}: {share:.1%} of the images have a gradient of zero"
        for (source, attack), share in zero_gradients.items()
        if share > ZERO_GRADIENT_SHARE
    ]
    return len(zero_gradients), failures, "declare a white-box attack"


def _adaptive(metrics: pd.DataFrame, defences: list[str]) -> Found:
    compared, failures = 0, []
    keys = ["source", "attack", "target"]
    for name in defences:
        rows: Any = metrics[metrics["defence"] == name]
        oblivious, adaptive = rows[~rows["adaptive"]], rows[rows["adaptive"]]
        if rows.empty or len(oblivious) != len(adaptive):
            failures.append(f"{name}: {len(oblivious)} oblivious and {len(adaptive)} adaptive results")
        both = oblivious.merge(adaptive, on=keys, suffixes=("", "_known"))
        for _, row in both.iterrows():
            compared += 1
            if larger(row["robust_accuracy_known"], row["n_known"], row["robust_accuracy"], row["n"]):
                failures.append(
                    f"{row['source']}|{row['attack']} behind {name}: adaptive {row['robust_accuracy_known']:.1%} is"
                    f" weaker than oblivious {row['robust_accuracy']:.1%}"
                )
    return compared, failures, "declare a defence"


def noisy(image_set: ImageSet, *, norm: str, eps: float, seed: int) -> ImageSet:
    """A set with random noise of the full size of a budget, clipped to [0, 1], drawn as the images are read.

    Args:
        image_set: any set.
        norm: `inf`: every pixel moves by eps, up or down; `2`: every image moves by eps in a random direction.
        eps: size, in the norm; pixels span [0, 1].
        seed: what is drawn for an image depends on this and its position alone.
    """
    return replace(image_set, pixels=_NoisyPixels(image_set.pixels, norm, eps, seed))


@dataclass(frozen=True)
class _NoisyPixels:
    source: Pixels
    norm: str
    eps: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        images = self.source[rows]
        first, last, _ = rows.indices(self.shape[0])
        drawn = np.stack([self._noise(row) for row in range(first, last)]) if last > first else np.zeros_like(images)
        return np.clip(images + drawn, np.float32(0), np.float32(1))

    def _noise(self, row: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, row])
        shape = self.shape[1:]
        if self.norm == "inf":
            return np.where(generator.random(shape, np.float32) < 0.5, -self.eps, self.eps).astype(np.float32)
        noise = generator.standard_normal(shape, np.float32)
        return noise * np.float32(self.eps / np.linalg.norm(noise))
