"""Where gates are judged: what a cell's numbers are held against, and what is known against them."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.assets.sanity import MODEL_SANITY
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.gates import (
    FAILED,
    GATE_COLUMNS,
    NOTHING_BEFORE,
    OF_CLEAN_IMAGES,
    PASSED,
    SMALLER_IS_BETTER,
    Gate,
    Measured,
    Reference,
    judge,
    parse_gate,
)
from partitions.attacks import Family
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import Cell, CellStore, DamagedCellError, StoredCell
from resources.tables import read_table, read_tables

JUDGED: tuple[Family, ...] = ("evasion", "poisoning")
SEPARATOR = "@"  # between the name of a registered model and its version
# What an example table says about an image that a rate counts.
PREDICTIONS = {"robust_accuracy": "adversarial_prediction", "clean_accuracy": "clean_prediction"}
# From the name of a registered model and an alias to the version, or a LookupError that says why there is none.
Aliases = Callable[[str, str], str]


def rules_of(spec: ExperimentSpec) -> list[Gate]:
    """The rules that say anything of these models: an alias is one of registered models alone."""
    return [gate for gate in spec.gates if spec.branch or not gate.alias]


def gated_families(spec: ExperimentSpec) -> list[Family]:
    """The families of attacks that a gate of the experiment says anything on."""
    rules = rules_of(spec)
    return [
        family for family in JUDGED if any(gate.holds_for(family, key) for gate in rules for key in spec.family(family))
    ]


class GateBench:
    """Judges the cells of an experiment, or of its branch of registered models, from what is stored.

    Args:
        spec: the experiment or its branch.
        store: where the numbers are.
        aliases: looks up an alias in the registry.
        stale: (architecture, attack) -> why its numbers are not those that the experiment now asks for.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        store: CellStore,
        aliases: Aliases,
        stale: Mapping[tuple[str, str], str] | None = None,
    ):
        self.spec, self.store, self.aliases, self.stale = spec, store, aliases, stale or {}
        self._tables: dict[tuple[Family, str, str], pd.DataFrame] = {}
        self._stored_tables: dict[str, pd.DataFrame | None] = {}
        self._sanity: dict[str, pd.DataFrame | None] = {}
        self._numbers: dict[str, list[int]] = {}

    def cell(self, family: Family, architecture: str, attack: str) -> pd.DataFrame:
        """The verdict on one cell of a metric table: rows of `GATE_COLUMNS`, one a rule that holds for it."""
        key = (family, architecture, attack)
        if key not in self._tables:
            self._tables[key] = self._judged(*key)
        return self._tables[key]

    def model(self, architecture: str) -> pd.DataFrame:
        """The verdicts on all cells of a model."""
        families = gated_families(self.spec)
        keys: list[tuple[Family, str]] = [
            (family, attack) for family in families for attack in self.spec.family(family)
        ]
        tables = [table for family, attack in keys if len(table := self.cell(family, architecture, attack))]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*GATE_COLUMNS])

    def _judged(self, family: Family, architecture: str, attack: str) -> pd.DataFrame:
        rules = [gate for gate in rules_of(self.spec) if gate.holds_for(family, attack)]
        stale = self.stale.get((architecture, attack), "")
        measured, metrics = Measured(stale=stale), None
        try:
            if rules and (stored := self._stored(f"{family}_metrics", architecture, attack)):
                metrics, measured = read_table(stored), self._measured(family, stored, rules, stale)
        except DamagedCellError as error:
            measured = Measured(stale=str(error))
        return judge(rules, metrics, measured, family=family, architecture=architecture, attack=attack)

    def _measured(self, family: Family, stored: StoredCell, rules: list[Gate], stale: str) -> Measured:
        architecture, attack = stored.cell.partition[ARCHITECTURE], stored.cell.partition[ATTACK]
        version = stored.manifest.data_version
        doubts, unchecked = self._doubts(architecture, attack, version) if family == "evasion" else ({}, "")
        holding = [gate for gate in rules if gate.sign == "no worse"]
        find = self._earlier_version if self.spec.branch else self._last_time
        return Measured(
            references={gate.rule: find(gate, family, stored) for gate in holding},
            right=self._right(architecture, attack) if holding and self.spec.branch else {},
            doubts=doubts,
            unchecked=unchecked,
            stale=stale,
            version=version,
        )

    def _stored(self, asset: str, architecture: str, attack: str | None = None) -> StoredCell | None:
        partition = {ARCHITECTURE: architecture} | ({} if attack is None else {ATTACK: attack})
        return self.store.find(Cell("/".join(asset_key(self.spec, asset).path), partition), check=True)

    def _doubts(self, architecture: str, attack: str, version: str) -> tuple[dict[tuple[str, str], str], str]:
        """What the sanity checks have against the numbers of an attack, and why there is nothing from them."""
        if architecture not in self._sanity:
            stored = self._stored(MODEL_SANITY, architecture)
            self._sanity[architecture] = None if stored is None else read_table(stored)
        table = self._sanity[architecture]
        if table is None:
            return {}, f"the sanity checks of {architecture} have not been made: materialize {MODEL_SANITY}"
        own: Any = table[table["attack"] == attack]
        if own.empty or set(own["looked_at"]) != {version}:
            return {}, f"the sanity checks of {architecture} were made of other numbers: materialize {MODEL_SANITY}"
        failed: Any = table[(table["status"] == FAILED) & table["attack"].isin([attack, ""])]
        found: dict[tuple[str, str], str] = {}
        for (name, defence), rows in failed.groupby(["attack", "defence"], sort=False):
            found[str(name), str(defence)] = "; ".join(
                f"{r['check']}: {'; '.join(r['findings'].splitlines())}" for _, r in rows.iterrows()
            )
        return found, ""

    # Models of the experiment: the version before is what the stored verdict of the same cell was on.

    def _last_time(self, gate: Gate, family: Family, stored: StoredCell) -> Reference:
        partition = stored.cell.partition
        before = self.store.find(Cell("/".join(asset_key(self.spec, f"{family}_gate").path), partition))
        if before is None:
            return NOTHING_BEFORE
        # Verdicts of before there was a status knew no more than whether a rule held.
        table = read_table(before).reindex(columns=[*GATE_COLUMNS])
        rows = [row for _, row in table.iterrows() if _same_rate(gate, row["rule"])]
        if not rows:
            return NOTHING_BEFORE
        # Any rule on the same rate knows what it was; one of the same words what it was held against.
        row: Any = next((row for row in rows if row["rule"] == gate.rule), rows[0])
        earlier = [(row["reference"], row["reference_n"])]
        now = [(row["value"], row["n"])] if bool(row["passed"]) else []
        judged = {*table["judged"].dropna()} or {before.manifest.attributes.get("judged")}
        again = judged == {stored.manifest.data_version}
        # The same numbers again are held against what they were held against.
        candidates = earlier if again else [*now, *earlier] if gate.against == "best" else (now or earlier)
        known = [(float(value), int(n)) for value, n in candidates if not pd.isna(value)]
        if not known:
            return NOTHING_BEFORE
        value, n = (min if gate.metric in SMALLER_IS_BETTER else max)(known)
        name = "the best version before it" if gate.against == "best" else "the version before it"
        return Reference(name, value, n)

    # Registered models: earlier versions of the same name.

    def _earlier_version(self, gate: Gate, family: Family, stored: StoredCell) -> Reference:
        name, _, number = stored.cell.partition[ARCHITECTURE].rpartition(SEPARATOR)
        version = ""
        if gate.alias:
            try:
                version = self.aliases(name, gate.alias)
            except LookupError as error:
                return Reference(why=str(error))
        # A version that was given the alias before it was judged is held against the last, not against itself.
        if version not in ("", number):
            return self._reference(gate, stored, f"{name}{SEPARATOR}{version}", f" (@{gate.alias})")
        return self._one_that_passed(gate, stored)

    def _one_that_passed(self, gate: Gate, stored: StoredCell) -> Reference:
        """The last of the versions before that passed, or the best of them."""
        passed, unjudged = self._passed_before(gate, stored)
        if not passed and unjudged:
            return Reference(why=f"{unjudged[-1]}, a version before it, has not been judged yet")
        if not passed:
            return NOTHING_BEFORE
        if gate.against != "best":
            return self._reference(gate, stored, passed[-1])
        references = [self._reference(gate, stored, one) for one in reversed(passed)]
        best = min if gate.metric in SMALLER_IS_BETTER else max
        unknown = [one for one in references if one.why]
        return unknown[0] if unknown else best(references, key=lambda one: one.value)  # of equals the newest

    def _passed_before(self, gate: Gate, stored: StoredCell) -> tuple[list[str], list[str]]:
        """The versions before one that passed every rule that blocks, and this one, in order; and those not judged yet.

        Of those before the newest that is stored to have passed, none is looked at where the last alone counts.
        """
        name, _, number = stored.cell.partition[ARCHITECTURE].rpartition(SEPARATOR)
        if name not in self._numbers:
            self._numbers[name] = self._versions(name)
        earlier = [f"{name}{SEPARATOR}{version}" for version in self._numbers[name] if version < int(number)]

        def passed(table: pd.DataFrame | None) -> bool:
            if table is None:
                return False
            own = (table["rule"] == gate.rule) & (table["attack"] == stored.cell.partition[ATTACK])
            counts = table[own | (table["severity"] == "block")]
            return bool(own.any()) and bool((counts["status"] == PASSED).all())

        if gate.against != "best":
            places = range(len(earlier))
            earlier = earlier[next((place for place in reversed(places) if passed(self._known(earlier[place]))), 0) :]
        # The oldest first: each finds those before it judged.
        tables = {}
        for one in earlier:
            table = self._known(one)
            tables[one] = self.model(one) if table is None else table
        unjudged = [one for one, table in tables.items() if not passed(table) and self._incomplete(one)]
        return [one for one, table in tables.items() if passed(table)], unjudged

    def _versions(self, name: str) -> list[int]:
        """The versions of a registered model that were fetched, rising."""
        asset = "/".join(asset_key(self.spec, "model").path)
        keys = [cell.partition[ARCHITECTURE] for cell in self.store.cells(asset) if cell.asset == asset]
        parts = [key.rpartition(SEPARATOR) for key in keys]
        return sorted(int(number) for own, _, number in parts if own == name and number.isdigit())

    def _known(self, architecture: str) -> pd.DataFrame | None:
        """The stored verdicts on a model, where they are all there, of the rules that there are, and of its numbers."""
        if architecture not in self._stored_tables:
            self._stored_tables[architecture] = self._stored_verdicts(architecture)
        return self._stored_tables[architecture]

    def _stored_verdicts(self, architecture: str) -> pd.DataFrame | None:
        tables = []
        for attack in self.spec.attacks if not any(one == architecture for one, _ in self.stale) else ():
            rules = {(g.rule, g.severity) for g in rules_of(self.spec) if g.holds_for("evasion", attack)}
            if not rules:
                continue
            gate, metrics = (self._stored(f"evasion_{one}", architecture, attack) for one in ("gate", "metrics"))
            if gate is None or metrics is None:
                return None
            table = read_table(gate).reindex(columns=[*GATE_COLUMNS])
            same = set(zip(table["rule"], table["severity"], strict=True)) == rules
            if not same or set(table["judged"]) != {metrics.manifest.data_version}:
                return None
            tables.append(table)
        return pd.concat(tables, ignore_index=True) if tables else None

    def _incomplete(self, architecture: str) -> bool:
        """Whether a model has not been judged because numbers are missing or stale, and not for what they are."""
        table = self.model(architecture)
        measured = bool((table["judged"] != "").all()) and self._stored(MODEL_SANITY, architecture) is not None
        return not measured or any((architecture, attack) in self.stale for attack in table["attack"])

    def _reference(self, gate: Gate, stored: StoredCell, architecture: str, called: str = "") -> Reference:
        """A version as what another one is held against."""
        attack = stored.cell.partition[ATTACK]
        metrics = self._stored("evasion_metrics", architecture, attack)
        if metrics is None:
            return Reference(why=f"{architecture}{called} has not been attacked by {attack} here")
        if self._attacked_with(architecture, attack) != self._attacked_with(
            stored.cell.partition[ARCHITECTURE], attack
        ):
            return Reference(
                why=f"{architecture}{called} was attacked with another config of {attack}: compute it again"
            )
        doubts, unchecked = self._doubts(architecture, attack, metrics.manifest.data_version)
        fault = self.stale.get((architecture, attack), "") or (
            gate.metric not in OF_CLEAN_IMAGES and (unchecked or doubts)
        )
        if fault:
            return Reference(why=f"{architecture}{called} is no measure: it was not judged itself")
        table = read_table(metrics)
        own: Any = table[(table["target"] == architecture) & (table["defence"] == NO_DEFENCE)]
        if len(own) != 1 or pd.isna(own[gate.metric].item()):
            return Reference(why=f"{architecture}{called} has no {gate.metric} under {attack}")
        count = own["asr_n" if gate.metric == "asr" else "n"].item()
        right = self._right(architecture, attack).get(gate.metric)
        return Reference(f"{architecture}{called}", float(own[gate.metric].item()), int(count), right)

    def _attacked_with(self, architecture: str, attack: str) -> Any:
        stored = self._stored("adversarial_set", architecture, attack)
        return stored.manifest.attributes.get("attack") if stored else None

    def _right(self, architecture: str, attack: str) -> dict[str, pd.Series]:
        """Rate -> image id -> whether a model alone was right about it."""
        stored = self._stored("evasion_examples", architecture, attack)
        if stored is None:
            return {}
        columns = ["image_id", "label", "source", "target", "defence", *PREDICTIONS.values()]
        table: Any = read_tables([stored], columns)
        own = table[(table["target"] == architecture) & (table["defence"] == NO_DEFENCE)]
        return {
            rate: (own[prediction] == own["label"]).set_axis(own["image_id"])
            for rate, prediction in PREDICTIONS.items()
        }


def _same_rate(gate: Gate, rule: str) -> bool:
    """Whether a rule, as it was written once, is on the same rate behind the same defence."""
    try:
        other = parse_gate(rule)
    except ValueError:
        return False
    return (other.metric, other.defence) == (gate.metric, gate.defence)
