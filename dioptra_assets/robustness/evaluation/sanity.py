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

from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
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
    "the_loss_hides_nothing": "The same attack does no better with a loss that the scale of the logits cannot hide.",
    "attacks_change_images": "An attack changes images.",
    "models_beat_guessing": "Of the untouched images a model gets more right than by guessing.",
    "defences_are_judged_adaptive": "Every defence is judged oblivious and adaptive, and adaptive does no worse.",
}
# What has to be declared for a check to have something to compare.
WANTED: dict[str, str] = {
    "iterative_attacks_are_no_weaker": "declare an fgm and a pgd or bim of one norm and eps",
    "success_grows_with_eps": "declare an attack with several values of eps",
    "a_large_eps_reaches_chance": f"declare a pgd or bim with norm inf and eps {LARGE_EPS}",
    "transferred_attacks_are_no_stronger": "declare two architectures",
    "black_box_attacks_are_no_stronger": "declare a square and a pgd or bim of one norm and eps",
    "twice_the_steps_change_nothing": "declare a pgd or bim with a value of steps and twice as many",
    "noise_is_weaker": "declare an fgm, bim or pgd in the norm inf or 2",
    "gradients_are_there": "declare a white-box attack",
    "the_loss_hides_nothing": "declare an fgm, bim or pgd",
    "attacks_change_images": "declare an attack",
    "models_beat_guessing": "declare an attack",
    "defences_are_judged_adaptive": "declare a defence",
}
# The one check that needs other models beside the one that is judged.
TRANSFERRED = "transferred_attacks_are_no_stronger"
NOISE_COLUMNS = ["target", "norm", "eps", "robust_accuracy", "n"]
REFERENCE_COLUMNS = ["source", "attack", "loss", "attacked", "reference", "n", "low", "allowed"]
MODEL_SANITY_COLUMNS = {
    "check": "what must hold if the attack works",
    "attack": "the attack config whose numbers it concerns; empty: every one",
    "defence": "the defence behind which it was measured, or none",
    "status": "passed, failed or not applicable",
    "compared": "comparisons made",
    "findings": "what failed",
    "looked_at": "data version of the metric table that was looked at",
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


@dataclass(frozen=True)
class Compared:
    """One comparison of a check.

    Attributes:
        attack: the attack config whose robust accuracy would be too high; empty where it concerns every one.
        defence: the defence behind which it was measured.
        finding: a sentence where it failed, else empty.
    """

    attack: str
    defence: str = NO_DEFENCE
    finding: str = ""


def comparisons(
    metrics: pd.DataFrame,
    configs: Mapping[str, Any],
    *,
    class_count: int,
    noise: pd.DataFrame,
    zero_gradients: Mapping[tuple[str, str, str], float],
    references: pd.DataFrame | None = None,
    defences: Iterable[str] = (),
) -> dict[str, list[Compared]]:
    """Hold the metric tables of some models to `CHECKS`.

    Rows of attacks that know the defence they meet are held to what undefended ones are: they were computed on model
    and defence together. Oblivious rows are not: that they are weak is what a defence is for.

    Args:
        metrics: rows of `metrics.metric_table`, of any cells.
        configs: attack config by key, for every attack in `metrics`.
        class_count: guessing is right once in so many.
        noise: robust accuracy under random noise: rows of `NOISE_COLUMNS`.
        zero_gradients: (source, attack, defence) -> share of images whose gradient is zero, of white-box attacks.
        references: the attack and its reference with another loss on the same images: rows of `REFERENCE_COLUMNS`.
        defences: the names of the experiment's defences.

    Returns:
        The comparisons of each check, in the order of `CHECKS`.
    """
    table = metrics[(metrics["defence"] == NO_DEFENCE) | metrics["adaptive"].astype(bool)]
    everywhere = [_Point.of(row, configs[row["attack"]]) for _, row in table.iterrows()]
    points = [point for point in everywhere if point.defence == NO_DEFENCE]
    direct = [point for point in everywhere if point.source == point.target]
    made = {
        "iterative_attacks_are_no_weaker": _no_weaker(direct, ITERATIVE, SINGLE_STEP),
        "success_grows_with_eps": _grows(
            [*points, *(point for point in direct if point.defence != NO_DEFENCE)], configs
        ),
        "a_large_eps_reaches_chance": _reaches_chance(direct, 1 / class_count),
        TRANSFERRED: _transferred(points),
        "black_box_attacks_are_no_stronger": _no_weaker(direct, ITERATIVE, BLACK_BOX),
        "twice_the_steps_change_nothing": _steps(direct, configs),
        "noise_is_weaker": _noise(direct, noise),
        "gradients_are_there": _gradients(zero_gradients),
        "the_loss_hides_nothing": _references(references),
        "attacks_change_images": _changes(metrics),
        "models_beat_guessing": _beats_guessing(metrics, 1 / class_count),
        "defences_are_judged_adaptive": _adaptive(metrics, list(defences)),
    }
    return {name: made[name] for name in CHECKS}


def sanity_result(name: str, compared: int, findings: Iterable[str]) -> SanityResult:
    """The result of a check that made so many comparisons, those with a finding failed."""
    failures = tuple(findings)
    if not compared and not failures:
        return SanityResult(name, "not applicable", 0, (WANTED[name],))
    return SanityResult(name, "failed" if failures else "passed", compared, failures)


def sanity_checks(metrics: pd.DataFrame, configs: Mapping[str, Any], **measured: Any) -> list[SanityResult]:
    """One result a check, in the order of `CHECKS`; takes what :func:`comparisons` takes."""
    return [
        sanity_result(name, len(made), (result.finding for result in made if result.finding))
        for name, made in comparisons(metrics, configs, **measured).items()
    ]


def model_sanity_table(made: Mapping[str, list[Compared]], looked_at: Mapping[str, str]) -> pd.DataFrame:
    """What the checks that need one model alone say of each of its attacks.

    Args:
        made: of :func:`comparisons`, of one model.
        looked_at: attack -> data version of its metric table.

    Returns:
        Rows of `MODEL_SANITY_COLUMNS`: one a check and attack, and one more for each defence it was compared behind.
    """
    rows = []
    for check in (name for name in CHECKS if name != TRANSFERRED):
        general = [(result.attack, result.defence) for result in made[check] if not result.attack]
        behind = [(result.attack, result.defence) for result in made[check]]
        for attack, defence in dict.fromkeys([*((attack, NO_DEFENCE) for attack in looked_at), *behind, *general]):
            results = [result for result in made[check] if (result.attack, result.defence) == (attack, defence)]
            findings = [result.finding for result in results if result.finding]
            status = "failed" if findings else "passed" if results else "not applicable"
            facts = {"check": check, "attack": attack, "defence": defence, "status": status, "compared": len(results)}
            rows.append(facts | {"findings": "\n".join(findings), "looked_at": looked_at.get(attack, "")})
    return pd.DataFrame(rows, columns=[*MODEL_SANITY_COLUMNS])


@dataclass(frozen=True)
class _Point:
    source: str
    attack: str
    target: str
    defence: str
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
            row["defence"],
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

    @property
    def model(self) -> tuple[str, str]:
        return self.source, self.defence

    def __str__(self) -> str:
        behind = "" if self.defence == NO_DEFENCE else f" behind {self.defence}"
        return f"{self.source}|{self.attack} on {self.target}{behind}: {self.rate:.1%}"

    def compared(self, finding: str) -> Compared:
        return Compared(self.attack, self.defence, finding)


def larger(rate: float, n: int, other: float, other_n: int) -> bool:
    """Whether a rate of n images is larger than another by more than `Z` standard errors of their difference."""
    # Agresti and Caffo's estimate, which does not vanish at rates of 0 and 1.
    p, q = (rate * n + 1) / (n + 2), (other * other_n + 1) / (other_n + 2)
    return rate - other > Z * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (other_n + 2))


def _weaker(point: _Point, other: _Point) -> bool:
    return larger(point.rate, point.n, other.rate, other.n)


def _no_weaker(own: list[_Point], strong: set[str], weak: set[str]) -> list[Compared]:
    """Attacks of the strong methods against those of the weak ones, of the same size on the same model."""
    pairs = [
        (a, b)
        for a in own
        for b in own
        if a.method in strong and b.method in weak and a.model == b.model and a.size == b.size
    ]
    return [a.compared(f"{a} is weaker than {b}" if _weaker(a, b) else "") for a, b in pairs]


def _grows(points: list[_Point], configs: Mapping[str, Any]) -> list[Compared]:
    families: dict[Any, list[_Point]] = {}
    for point in points:
        if point.eps is not None and not point.targeted:
            rest = configs[point.attack].model_dump(exclude={"eps", "eps_step"})
            families.setdefault((point.source, point.target, point.defence, repr(rest)), []).append(point)
    made = []
    for family in families.values():
        ordered = sorted(family, key=lambda point: point.eps or 0.0)
        for smaller, bigger in pairwise(ordered):
            # A single step may overshoot and climb again; for a transferred one that is no fault of the attack.
            failed = _weaker(bigger, smaller) and bigger.source == bigger.target
            made.append(bigger.compared(f"{bigger} is weaker than {smaller}" if failed else ""))
    return made


def _reaches_chance(own: list[_Point], chance: float) -> list[Compared]:
    large = [p for p in own if p.method in ITERATIVE and p.norm == "inf" and (p.eps or 0) >= LARGE_EPS]
    return [
        p.compared(f"{p} is more than guessing, {chance:.1%}" if larger(p.rate, p.n, chance, p.n) else "")
        for p in large
    ]


def _transferred(points: list[_Point]) -> list[Compared]:
    own = {(p.attack, p.target): p for p in points if p.source == p.target}
    # Only gradients say where the model is weakest: black-box attacks have their own chances on either model.
    pairs = [
        (p, own[p.attack, p.target])
        for p in points
        if p.source != p.target and p.method in SINGLE_STEP | ITERATIVE and (p.attack, p.target) in own
    ]
    return [own.compared(f"{own} is weaker than {p}" if _weaker(own, p) else "") for p, own in pairs]


def _steps(own: list[_Point], configs: Mapping[str, Any]) -> list[Compared]:
    def rest(point: _Point) -> str:
        return repr(configs[point.attack].model_dump(exclude={"steps"}))

    stepped = [p for p in own if p.method in ITERATIVE]
    pairs = [
        (a, b)
        for a in stepped
        for b in stepped
        if a.model == b.model and rest(a) == rest(b) and configs[b.attack].steps == 2 * configs[a.attack].steps
    ]
    return [
        a.compared(f"{b} is stronger than {a}: give the attack more steps" if _weaker(a, b) else "") for a, b in pairs
    ]


def _noise(own: list[_Point], noise: pd.DataFrame) -> list[Compared]:
    made = []
    for _, row in noise.iterrows():
        for point in own:
            same = (point.target, point.norm, point.eps) == (row["target"], str(row["norm"]), float(row["eps"]))
            undefended = point.defence == NO_DEFENCE
            if same and undefended and point.method in SINGLE_STEP | ITERATIVE and not point.targeted:
                failed = larger(point.rate, point.n, float(row["robust_accuracy"]), int(row["n"]))
                said = f"{point} is weaker than noise of the same size, {row['robust_accuracy']:.1%}"
                made.append(point.compared(said if failed else ""))
    return made


def _gradients(zero_gradients: Mapping[tuple[str, str, str], float]) -> list[Compared]:
    made = []
    for (source, attack, defence), share in zero_gradients.items():
        behind = "" if defence == NO_DEFENCE else f" behind {defence}"
        said = f"{source}|{attack}{behind}: {share:.1%} of the images have a gradient of zero"
        made.append(Compared(attack, defence, said if not share <= ZERO_GRADIENT_SHARE else ""))
    return made


def _references(references: pd.DataFrame | None) -> list[Compared]:
    """Attacks that the reference leaves behind by more than the paired interval, and by more than its loss may."""
    made = []
    for _, row in (pd.DataFrame(columns=REFERENCE_COLUMNS) if references is None else references).iterrows():
        said = (
            f"{row['source']}|{row['attack']}: {row['attacked']:.1%} of {row['n']:,} images are still right,"
            f" {row['reference']:.1%} with the loss {row['loss']}, which the scale of the logits cannot hide"
        )
        made.append(Compared(row["attack"], finding=said if not row["low"] <= row["allowed"] else ""))
    return made


def _changes(metrics: pd.DataFrame) -> list[Compared]:
    own = metrics[metrics["source"] == metrics["target"]]
    made = []
    for _, row in own.iterrows():
        behind = "" if row["defence"] == NO_DEFENCE else f" behind {row['defence']}"
        said = f"{row['source']}|{row['attack']}{behind}: no image was changed, so nothing was attacked"
        made.append(Compared(row["attack"], row["defence"], "" if row["linf_max"] > 0 else said))
    return made


def _beats_guessing(metrics: pd.DataFrame, chance: float) -> list[Compared]:
    own = metrics[metrics["source"] == metrics["target"]]
    made = []
    for _, row in own.iterrows():
        behind = "" if row["defence"] == NO_DEFENCE else f" behind {row['defence']}"
        said = (
            f"{row['source']}{behind}: {row['clean_accuracy']:.1%} of the untouched images are right, guessing gives"
            f" {chance:.1%}: look at the order of the classes and the range of the pixels"
        )
        made.append(Compared(row["attack"], row["defence"], "" if row["clean_accuracy_low"] > chance else said))
    return made


def _adaptive(metrics: pd.DataFrame, defences: list[str]) -> list[Compared]:
    made = []
    keys = ["source", "attack", "target"]
    for name in defences:
        rows: Any = metrics[metrics["defence"] == name]
        oblivious, adaptive = rows[~rows["adaptive"]], rows[rows["adaptive"]]
        if rows.empty or len(oblivious) != len(adaptive):
            made.append(Compared("", name, f"{name}: {len(oblivious)} oblivious and {len(adaptive)} adaptive results"))
        both = oblivious.merge(adaptive, on=keys, suffixes=("", "_known"))
        for _, row in both.iterrows():
            failed = larger(row["robust_accuracy_known"], row["n_known"], row["robust_accuracy"], row["n"])
            said = (
                f"{row['source']}|{row['attack']} behind {name}: adaptive {row['robust_accuracy_known']:.1%} is"
                f" weaker than oblivious {row['robust_accuracy']:.1%}"
            )
            made.append(Compared(row["attack"], name, said if failed else ""))
    return made


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
