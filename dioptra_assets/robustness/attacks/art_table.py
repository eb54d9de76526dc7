"""The evasion attacks of ART that can be named in a config, recorded so that a config is checked without importing ART.

What ART says of itself, each attack's parameters with types and defaults, stands in art_table.json beside this file:
`python -m dioptra_assets.robustness.attacks.art_table` writes it anew from the ART that is installed. What it does not
say stands here: what each attack needs to know, measures, and how it has to be run.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dioptra_assets.robustness.attacks.base import Goal, Knowledge

TABLE = Path(__file__).with_name("art_table.json")

Scalar = bool | int | float | str | None
SCALARS = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}

BOTH: tuple[Goal, ...] = ("untargeted", "targeted")
UNTARGETED: tuple[Goal, ...] = ("untargeted",)
TARGETED: tuple[Goal, ...] = ("targeted",)


@dataclass(frozen=True)
class ArtAttack:
    """What ART's signatures do not say of an attack.

    Attributes:
        knowledge: `black-box` where it asks for predictions alone.
        norm: the norm that measures it: `inf`, `2`, `1` or `0`, `parameter` where its own parameter `norm` says, or
            `none`.
        goals: what it can aim at.
        alone: it has to be given one image at a time: it draws from numpy's global generator, so that an image's result
            would depend on the others of its batch, or mixes the images of a batch. Else the names of parameters that
            make it so where they are neither false nor zero.
        starts: it draws the points that it starts from and nothing else, which `art_starts` draws image by image.
        outputs: what it takes the model to give.
        batch_size: the only one it takes, where there is just one.
    """

    knowledge: Knowledge
    norm: Literal["inf", "2", "1", "0", "parameter", "none"]
    goals: tuple[Goal, ...] = BOTH
    alone: bool | tuple[str, ...] = False
    starts: bool = False
    outputs: Literal["logits", "probabilities"] = "logits"
    batch_size: int | None = None


ART_ATTACKS: dict[str, ArtAttack] = {
    "AutoConjugateGradient": ArtAttack("white-box", "parameter", starts=True),
    "AutoProjectedGradientDescent": ArtAttack("white-box", "parameter", starts=True),
    "BasicIterativeMethod": ArtAttack("white-box", "inf"),
    "BoundaryAttack": ArtAttack("black-box", "2", alone=True),
    "CarliniL0Method": ArtAttack("white-box", "0"),
    "CarliniL2Method": ArtAttack("white-box", "2"),
    "CarliniLInfMethod": ArtAttack("white-box", "inf"),
    "DeepFool": ArtAttack("white-box", "2", UNTARGETED),
    "ElasticNet": ArtAttack("white-box", "1"),
    "FastGradientMethod": ArtAttack("white-box", "parameter", alone=("num_random_init",)),
    "HopSkipJump": ArtAttack("black-box", "parameter", alone=True),
    "MomentumIterativeMethod": ArtAttack("white-box", "parameter"),
    "NewtonFool": ArtAttack("white-box", "2", UNTARGETED, outputs="probabilities"),
    "ProjectedGradientDescent": ArtAttack("white-box", "parameter", alone=("random_eps",), starts=True),
    # It divides by the norm of the gradients of the whole batch.
    "RescalingAutoConjugateGradient": ArtAttack("white-box", "parameter", alone=True),
    "SaliencyMapMethod": ArtAttack("white-box", "0", TARGETED),
    "SignOPTAttack": ArtAttack("black-box", "2", UNTARGETED, alone=True),
    "SimBA": ArtAttack("black-box", "2", alone=True, outputs="probabilities", batch_size=1),
    "SpatialTransformation": ArtAttack("black-box", "none", UNTARGETED, alone=True),
    "SquareAttack": ArtAttack("black-box", "parameter", UNTARGETED, alone=True),
    "VirtualAdversarialMethod": ArtAttack("black-box", "2", UNTARGETED, alone=True, outputs="probabilities"),
    "Wasserstein": ArtAttack("white-box", "none"),
    "ZooAttack": ArtAttack("black-box", "2", alone=True),
}

_PATCH = "makes one patch for a whole set"
_TORCH = "needs a model in PyTorch"
_SPEECH = "attacks speech"
_DETECTOR = "attacks object detectors"
_UNIVERSAL = "makes one change for a whole set"
_GUIDE = "needs images to imitate"
_SEARCH = "the generator it draws from cannot be seeded, and the methods pixel and threshold replace it"

LEFT_OUT: dict[str, str] = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchPyTorch": _PATCH,
    "AdversarialPatchTensorFlowV2": _PATCH,
    "AdversarialTexturePyTorch": "attacks trackers in video",
    "AutoAttack": "is an ensemble of ART's own (DeepFool in place of FAB, no targeted APGD) whose numbers cannot be "
    "compared with those published for AutoAttack; use AutoProjectedGradientDescent with each loss_type, or the method "
    "pgd with loss dlr and several random_starts, and the method square beside it",
    "BrendelBethgeAttack": "needs the package numba",
    "CarliniWagnerASR": _SPEECH,
    "CompositeAdversarialAttackPyTorch": _TORCH,
    "DPatch": _DETECTOR,
    "DecisionTreeAttack": "attacks decision trees",
    "FeatureAdversariesNumpy": _GUIDE,
    "FeatureAdversariesPyTorch": _GUIDE,
    "FeatureAdversariesTensorFlowV2": _GUIDE,
    "FrameSaliencyAttack": "attacks video",
    "GRAPHITEBlackbox": "needs an image of the target class for every image",
    "GRAPHITEWhiteboxPyTorch": _TORCH,
    "GeoDA": "calls numpy.mat, which numpy 2 does not have",
    "HighConfidenceLowUncertainty": "attacks Gaussian processes",
    "ImperceptibleASR": _SPEECH,
    "ImperceptibleASRPyTorch": _SPEECH,
    "LaserAttack": "needs a generator of laser beams, a Python object",
    "LowProFool": "attacks tables",
    "MalwareGDTensorFlow": "attacks programs",
    "OverTheAirFlickeringPyTorch": "attacks video",
    "OverloadPyTorch": _DETECTOR,
    "PixelAttack": _SEARCH,
    "ProjectedGradientDescentNumpy": "ProjectedGradientDescent is this one",
    "ProjectedGradientDescentPyTorch": _TORCH,
    "ProjectedGradientDescentTensorFlowV2": "ProjectedGradientDescent does the same",
    "RobustDPatch": _DETECTOR,
    "SNAL": _DETECTOR,
    "ShadowAttack": "is made against randomised smoothing, and takes batch_size for its number of noisy copies",
    "TargetedUniversalPerturbation": _UNIVERSAL,
    "ThresholdAttack": _SEARCH,
    "UniversalPerturbation": _UNIVERSAL,
}

# Set by the config's own fields of that name, or without meaning here.
NOT_PARAMETERS = {"batch_size", "verbose", "summary_writer", "targeted"}


@functools.cache
def recorded() -> dict[str, Any]:
    """The table as recorded: `art_version`, and for each of its `attacks` the parameters.

    A parameter has `types`, the names of the scalars it takes, and its `default`.
    """
    return json.loads(TABLE.read_text())


def installed() -> dict[str, Any]:
    """The table as the installed ART gives it."""
    import art
    from art.attacks import evasion

    attacks = {name: _parameters(getattr(evasion, name)) for name in ART_ATTACKS}
    return {"art_version": art.__version__, "attacks": attacks}


def installed_names() -> set[str]:
    """All attacks that the installed ART holds to be evasion attacks."""
    from art.attacks import evasion

    return {name for name, value in vars(evasion).items() if isinstance(value, type)}


def _parameters(attack: type) -> dict[str, Any]:
    import inspect

    parameters = {}
    for parameter in list(inspect.signature(attack).parameters.values())[1:]:
        types = [] if parameter.name in NOT_PARAMETERS else _scalars(parameter.annotation)
        if set(types) - {"None"}:
            infinite = parameter.default == float("inf")
            parameters[parameter.name] = {"types": types, "default": "inf" if infinite else parameter.default}
    return parameters


def _scalars(annotation: Any) -> list[str]:
    """Which scalars a parameter takes; none where its type holds anything else than scalars and arrays of them."""
    import typing

    if not isinstance(annotation, str):
        kinds = typing.get_args(annotation) or (annotation,)
        annotation = " | ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    names = [name.strip() for name in annotation.split("|")]
    return [name for name in names if name in SCALARS] if set(names) <= {*SCALARS, "np.ndarray"} else []


if __name__ == "__main__":
    table = installed()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table["attacks"].items())
    TABLE.write_text(f'{{"art_version": {json.dumps(table["art_version"])}, "attacks": {{\n{lines}\n}}}}\n')
