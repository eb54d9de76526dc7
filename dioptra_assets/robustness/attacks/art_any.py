"""Any evasion attack of the Adversarial Robustness Toolbox, by name."""

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dioptra_assets.robustness.attacks import art_engine
from dioptra_assets.robustness.attacks.art_table import ART_ATTACKS, LEFT_OUT, SCALARS, ArtAttack, Scalar, recorded
from dioptra_assets.robustness.attacks.base import Attack, PerturbBatch, ThreatModel
from dioptra_assets.robustness.attacks.fgm import parse_norm


class AnyArtAttack(Attack, frozen=True, extra="forbid"):
    """An evasion attack of the Adversarial Robustness Toolbox, by the name of its class.

    Name and parameters are checked, when the config loads, against a table of ART 1.20.1; bounds that ART keeps for
    itself are checked when the attack is set up. What its defaults get wrong is seen to: labels are always given, the
    model gives logits (probabilities to the few attacks that ask for them), the loss is taken on logits, and what the
    attack draws at random comes from generators seeded by the seed and the image's position in the set. Attacks that
    draw where they start and nothing else (AutoProjectedGradientDescent, AutoConjugateGradient,
    ProjectedGradientDescent) run in batches all the same; others that draw, or whose images would influence each other,
    get one image at a time whatever `batch_size` is.

    `queries` counts the images that went through the model; where ART attacks a batch at once, and stops for none of
    its images, it is the mean over the batch, rounded up. `zero_gradient` says, of a white-box attack, whether the
    gradient of the cross-entropy is zero at the image it starts from.
    """

    method: Literal["art"] = "art"
    engine: Literal["art"] = Field(default="art", description="art alone.")
    attack: str = Field(description="Name of the class in art.attacks.evasion, such as CarliniL2Method.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="Its parameters, as ART calls them; what is left out has ART's default. batch_size and targeted "
        "are fields of this entry.",
    )

    @field_validator("attack")
    @classmethod
    def _attack_is_known(cls, attack: str, info: ValidationInfo) -> str:
        if attack not in ART_ATTACKS:
            why = f", which {LEFT_OUT[attack]}" if attack in LEFT_OUT else ""
            raise ValueError(f"attack is {attack!r}{why}: allowed are {', '.join(ART_ATTACKS)}")
        targeted, goals = info.data.get("targeted"), ART_ATTACKS[attack].goals
        if targeted is not None and ("targeted" if targeted else "untargeted") not in goals:
            raise ValueError(
                f"attack is {attack!r} and targeted is {str(targeted).lower()}: it can be {goals[0]} alone, set "
                f"targeted to {str(not targeted).lower()}"
            )
        return attack

    @field_validator("parameters")
    @classmethod
    def _parameters_are_known(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Scalar]:
        attack = info.data.get("attack")
        if attack is None:  # refused already
            return {}
        known = recorded()["attacks"][attack]
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise ValueError(f"{attack} has no parameter {', '.join(unknown)}: allowed are {', '.join(known)}")
        return {name: _checked(name, value, known[name]["types"]) for name, value in parameters.items()}

    def __hash__(self) -> int:
        """As all configs have it, which a field that holds a dictionary takes away."""
        return hash(self.model_dump_json())

    def threat_model(self) -> ThreatModel:
        """What this attack knows and changes; attacks that look for a small change have no bound."""
        facts, values = ART_ATTACKS[self.attack], self._values()
        norm = f"{values['norm']}" if facts.norm == "parameter" else facts.norm
        if norm == "none":
            budget = f"no norm; {', '.join(f'{name} {value}' for name, value in values.items())}"
        elif "eps" in values:
            budget = f"L{norm} <= {values['eps']:g}, pixels in [0, 1]"
        else:
            budget = f"the smallest L{norm} found, without a bound, pixels in [0, 1]"
        return ThreatModel(
            nist_class="evasion",
            knowledge=facts.knowledge,
            goal="targeted" if self.targeted else "untargeted",
            norm=norm,
            budget=budget,
        )

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class.

        Raises:
            ValueError: where ART refuses a parameter.
            RuntimeError: when Keras does not run on TensorFlow.
        """
        facts = ART_ATTACKS[self.attack]
        needs = art_engine.Needs(
            alone=_alone(facts, self._values()),
            white_box=facts.knowledge == "white-box",
            probabilities=facts.outputs == "probabilities",
            starts=facts.starts,
        )
        return art_engine.prepare_any(model, class_count, self._art_attack, needs, seed=seed)

    def _values(self) -> dict[str, Scalar]:
        known = recorded()["attacks"][self.attack]
        return {name: parameter["default"] for name, parameter in known.items()} | self.parameters

    def _art_attack(self, classifier: Any) -> Any:
        import inspect

        from art.attacks import evasion

        make = getattr(evasion, self.attack)
        batch_size = ART_ATTACKS[self.attack].batch_size or self.batch_size
        ours = {"batch_size": batch_size, "verbose": False, "targeted": self.targeted}
        taken = inspect.signature(make).parameters
        given = {name: value for name, value in ours.items() if name in taken} | self.parameters
        if given.get("norm") == "inf":
            given["norm"] = math.inf
        try:
            return make(classifier, **given)
        except (ValueError, TypeError) as error:
            raise ValueError(f"parameters are refused by {self.attack}: {error}") from error


def _checked(name: str, value: Any, types: list[str]) -> Scalar:
    if name == "norm" and "int" in types:
        return parse_norm(value)  # pyright: ignore[reportReturnType]
    kind = next((text for text, scalar in SCALARS.items() if type(value) is scalar), None)
    if kind == "int" and "int" not in types and "float" in types:
        return float(value)
    if kind not in types or (kind == "float" and not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}: allowed is {' or '.join(types)}")
    return value


def _alone(facts: ArtAttack, values: dict[str, Scalar]) -> bool:
    return facts.alone if isinstance(facts.alone, bool) else any(values[name] for name in facts.alone)
