"""The square attack: a random search that sees logits alone."""

import bisect
import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.attacks.base import Attack, AttackInput, PerturbBatch, Perturbed, ThreatModel
from dioptra_assets.robustness.attacks.search import GRAIN

# The share of an image that a square covers is halved whenever this share of the queries is spent, as in the authors'
# code and in ART.
HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

# Random numbers are drawn for so many queries of an image at once.
DRAWN_AT_ONCE = 64


class SquareAttack(Attack, frozen=True, extra="forbid"):
    """Random squares of size `eps`, kept where they help (Andriushchenko et al. 2020, arXiv 1912.00049, section 3).

    Every pixel stands at a corner of the Linf ball. It starts with vertical stripes of one column; then each query sets
    a square at a random place, all of one random corner a channel, and is kept where the margin falls: the logit of the
    class to leave less the largest other, or with `targeted` the largest other less that of the class to reach. A
    square that would change nothing has its signs turned about. Squares shrink as the queries are spent. An image is
    done as soon as it is classified as the attack wants; only the others are asked for further. One that is there from
    the start is left as it is.

    An image that is never found comes back as the try with the smallest margin, as in the paper: the attack spends a
    fixed budget, it does not look for the smallest change. The index has the column `found` (bool):
    whether the image, as it stands in the set, is where the attack wants it.

    What is drawn for an image depends on the seed and on its position in the set alone.
    """

    method: Literal["square"] = "square"
    engine: Literal["compiled"] = Field(default="compiled", description="compiled alone: ART draws batch by batch.")
    eps: float = Field(
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Change of a pixel, above 0, at most 1, the whole range (8 of 255 is 0.0314).",
    )
    max_queries: int = Field(
        default=1000,
        ge=3,
        strict=True,
        description="Times the model may be asked for one image, at least 3: the image itself, the stripes, squares.",
    )
    p_init: float = Field(default=0.8, gt=0, le=1, description="Share of the image that the first squares cover.")

    def seeks(self) -> bool:
        """See the base class."""
        return True

    def threat_model(self) -> ThreatModel:
        """Black-box evasion within `eps` of Linf, from logits."""
        return ThreatModel(
            nist_class="evasion",
            knowledge="black-box",
            goal="targeted" if self.targeted else "untargeted",
            norm="inf",
            budget=f"Linf <= {self.eps:g}, pixels in [0, 1], at most {self.max_queries} queries of logits an image",
        )

    def side(self, spent: int, height: int, width: int) -> int:
        """Side of the square in pixels after `spent` of the queries for squares."""
        share = self.p_init / 2 ** bisect.bisect_left(HALVED_AT, spent / (self.max_queries - 2))
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class."""
        margins = compiled.compiled_margins(model, self.targeted)

        def perturb(batch: AttackInput) -> Perturbed:
            return self._search(margins, batch, seed)

        return perturb

    def _search(self, margins: Any, batch: AttackInput, seed: int) -> Perturbed:
        rows, height, width, channels = batch.images.shape
        clean = margins(batch.images, batch.goals)
        images, best, finite = batch.images.copy(), clean["margin"].copy(), clean["finite"].copy()
        queries = np.ones(rows, np.int64)
        active = np.flatnonzero(finite & (best >= -GRAIN))
        generators = {row: np.random.default_rng([seed, int(batch.positions[row])]) for row in active.tolist()}

        def ask(candidates: np.ndarray) -> np.ndarray:
            """Keep what is better, and say who goes on."""
            asked = margins(candidates, batch.goals[active])
            # By more than a forward pass over a batch of another size may round otherwise.
            better = asked["margin"] < best[active] - GRAIN
            images[active[better]] = candidates[better]
            best[active[better]] = asked["margin"][better]
            finite[active] &= asked["finite"]
            queries[active] += 1
            return active[finite[active] & (best[active] >= -GRAIN)]

        def at_corner(signs: np.ndarray) -> np.ndarray:
            moved = batch.images[active] + np.float32(self.eps) * signs
            return np.clip(moved, np.float32(0), np.float32(1))

        if len(active):
            stripes = np.stack(
                [_signs(generators[row].random((width, channels), np.float32)) for row in active.tolist()]
            )
            best[active] = np.inf  # the search starts at the stripes, better than the image or not
            active = ask(at_corner(stripes[:, None]))
        drawn = np.empty((rows, DRAWN_AT_ONCE, 2 + channels), np.float32)
        for spent in range(self.max_queries - 2):
            if not len(active):
                break
            turn = spent % DRAWN_AT_ONCE
            if turn == 0:
                for row in active.tolist():
                    generators[row].random(drawn.shape[1:], np.float32, out=drawn[row])
            numbers, side = drawn[active, turn], self.side(spent, height, width)
            within = _within(numbers[:, 0], height, side)[:, :, None] & _within(numbers[:, 1], width, side)[:, None]
            within, signs = within[..., None], _signs(numbers[:, 2:])[:, None, None]
            current = images[active]
            candidates = np.where(within, at_corner(signs), current)
            same = (candidates == current).all(axis=(1, 2, 3), keepdims=True)
            if same.any():
                candidates = np.where(within & same, at_corner(-signs), candidates)
            active = ask(candidates)
        return Perturbed(
            images=images,
            queries=queries,
            zero_gradient=np.zeros(rows, bool),
            finite=finite,
            columns={"found": best < -GRAIN},
        )


def _signs(numbers: np.ndarray) -> np.ndarray:
    return np.where(numbers < 0.5, np.float32(-1), np.float32(1))


def _within(numbers: np.ndarray, size: int, side: int) -> np.ndarray:
    """Which of `size` pixels lie in a run of `side`, at the place that a number in [0, 1) of each row gives."""
    first = (numbers * (size - side + 1)).astype(np.int64)[:, None]
    place = np.arange(size)
    return (first <= place) & (place < first + side)
