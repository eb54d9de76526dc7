"""The worst case over attacks, image by image: what an attacker reaches who may try each of them on every image.

The lowest robust accuracy of a single attack is too high for that: where two attacks each leave other images standing,
an attacker with both leaves fewer. And attacks of different budgets do not answer one question, so that each threat
model, a norm and an eps, has a worst case of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.evaluation.metrics import proportion

# What is read of an example table.
WORST_CASE_INPUTS = [
    *("image_id", "label", "source", "attack", "target", "defence", "clean_prediction", "adversarial_prediction"),
]
WORST_CASE_COLUMNS = {
    "target": "the model",
    "defence": "the defence it stands behind, or none",
    "threat": "norm and budget of the attacks",
    "robust_accuracy": "share of the n images that are right untouched and under every one of the attacks",
    "robust_accuracy_low": "lower end of its 95 % interval (Wilson)",
    "robust_accuracy_high": "upper end of its 95 % interval (Wilson)",
    "clean_accuracy": "share of the n images that are right untouched",
    "clean_accuracy_low": "lower end of its 95 % interval (Wilson)",
    "clean_accuracy_high": "upper end of its 95 % interval (Wilson)",
    "n": "images",
    "attacks": "the attack configs, each with the models that its images were made on",
    "one_step": "whether they all take a single step, so that a stronger attack is still to be tried",
}


def threat(config: Any) -> str:
    """The threat model of an attack config in a few words: attacks of the same one are comparable."""
    model, eps = config.threat_model(), getattr(config, "eps", None)
    return f"L{model.norm} <= {eps:g}" if eps is not None else model.budget


class WorstCase:
    """Collects example tables, in any order, and keeps one bit an image of each model and threat model.

    Args:
        configs: attack config by key.
    """

    def __init__(self, configs: Mapping[str, Any]):
        self._configs = configs
        self._standing: dict[tuple[str, str, str], pd.Series] = {}
        self._clean: dict[tuple[str, str, str], pd.Series] = {}
        self._attacks: dict[tuple[str, str, str], dict[str, list[str]]] = {}

    def add(self, examples: pd.DataFrame) -> None:
        """The rows of some cells, with the columns of `WORST_CASE_INPUTS`.

        Raises:
            ValueError: when two attacks on one model are of other images, or of other clean predictions.
        """
        table: Any = examples
        for (source, attack, target, defence), rows in table.groupby(
            ["source", "attack", "target", "defence"], sort=False
        ):
            key = (target, defence, threat(self._configs[attack]))
            right = (rows["adversarial_prediction"] == rows["label"]).groupby(rows["image_id"]).all()
            clean = (rows["clean_prediction"] == rows["label"]).groupby(rows["image_id"]).all()
            if key not in self._standing:
                self._standing[key], self._clean[key] = right & clean, clean
            elif not clean.equals(self._clean[key].reindex(clean.index)) or len(clean) != len(self._clean[key]):
                raise ValueError(
                    f"{source}|{attack} on {target}: was evaluated on different images, or a different model, than"
                    f" {', '.join(self._attacks[key])}: materialize the stale cells first"
                )
            else:
                self._standing[key] &= right.reindex(self._standing[key].index)
            self._attacks.setdefault(key, {}).setdefault(attack, []).append(source)

    def table(self) -> pd.DataFrame:
        """Rows of `WORST_CASE_COLUMNS`: the models in the order in which they came, each by threat model."""
        rows = []
        for key in sorted(self._standing, key=self._place):
            target, defence, budget = key
            row: dict[str, Any] = {"target": target, "defence": defence, "threat": budget}
            for name, right in (("robust_accuracy", self._standing[key]), ("clean_accuracy", self._clean[key])):
                value, low, high = proportion(int(np.count_nonzero(right)), len(right))
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            attacks = self._attacks[key]
            told = [f"{attack} (made on {', '.join(dict.fromkeys(sources))})" for attack, sources in attacks.items()]
            one_step = all(self._configs[attack].one_step for attack in attacks)
            rows.append(row | {"n": len(self._clean[key]), "attacks": ", ".join(told), "one_step": one_step})
        return pd.DataFrame(rows, columns=[*WORST_CASE_COLUMNS])

    def _place(self, key: tuple[str, str, str]) -> tuple[int, str, float]:
        systems = list(dict.fromkeys((target, defence) for target, defence, _ in self._standing))
        config = self._configs[next(iter(self._attacks[key]))]
        return systems.index(key[:2]), config.threat_model().norm, float(getattr(config, "eps", 0.0))
