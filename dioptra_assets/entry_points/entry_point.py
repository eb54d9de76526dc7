"""The type of an entry point: its parameters, what it makes, and what it works on."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

WORKBENCH = "workbench"
MADRY_EPS = 0.3
RUN_IDS = ("run_id", "dataset_run_id", "training_dataset_run_id")
SWITCH = "load_dataset_from_mlruns"


class EntryPointError(ValueError):
    """An entry point or a parameter cannot be used. The message is one sentence, with what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of an entry point.

    Attributes:
        name: the name used by the demos, or the name of the config field if they lack it.
        type: the type with its bounds, for pydantic.
        help: one line.
        default: the default value; PydanticUndefined if the parameter is required.
        places: the fields that it sets: (`architecture`, `attack`, `poisoning`, `inversion` or `defence`, path of the
            field). Empty if it names a cell or a model, see :class:`Target`.
        demo: whether the demos have it.
    """

    name: str
    type: Any
    help: str
    default: Any = None
    places: tuple[tuple[str, str], ...] = ()
    demo: bool = True


@dataclass(frozen=True)
class EntryPoint:
    """A job of the demos.

    Attributes:
        name: the name used by the demos.
        help: what it does, in one line.
        assets: the assets of the experiment that it makes, main results first. Missing inputs are made before them.
        parameters: its parameters, those of the demos first.
        not_needed: parameters of the demos that are accepted but have no effect, each with a sentence that says why.
        not_taken: parameters of the demos that are refused, each with a sentence that says why.
        configs: the typed configs that it makes, by section.
        defaults: (section, path of a field) -> default, where it differs from that of the config.
        aliases: other names of parameters.
        example: parameters of a call that works.
    """

    name: str
    help: str
    assets: tuple[str, ...]
    parameters: dict[str, Parameter]
    not_needed: dict[str, str]
    not_taken: dict[str, str]
    configs: dict[str, type[BaseModel]] = field(default_factory=dict)
    defaults: dict[tuple[str, str], Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    example: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What an entry point works on, as named by its parameters. None: not named.

    Attributes:
        experiment: the experiment that the assets belong to.
        model: architecture key of the model that is attacked, inverted, evaluated or used as the proxy model.
        model_name: its registered name in MLflow, instead of `model`. If both are given, the key of the registered
            model is `model` or begins with `{model}@`.
        model_version: its registered version.
        asset: the image set to work on; for `gen_poison_test_data`, the one to make. One of `SETS`.
        architecture: architecture key of that set.
        attack: attack key of that set.
        defence: defence key of that set, only for a `defended_set`.
        image_set: key of the set that was defended, only for a `defended_set`.
        run_id: the MLflow run of the cell that holds the set, instead of asset and keys.
    """

    experiment: str
    model: str | None = None
    model_name: str | None = None
    model_version: int | None = None
    asset: str | None = None
    architecture: str | None = None
    attack: str | None = None
    run_id: str | None = None
    defence: str | None = None
    image_set: str | None = None
