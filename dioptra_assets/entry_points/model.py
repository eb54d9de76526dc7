"""What an entry point of the demos is: its parameters, what it makes, and what it works on."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

WORKBENCH = "workbench"
MADRY_EPS = 0.3
RUN_IDS = ("run_id", "dataset_run_id", "training_dataset_run_id")
SWITCH = "load_dataset_from_mlruns"


class EntryPointError(ValueError):
    """A parameter, or an entry point, that cannot be used; one sentence, with what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of an entry point.

    Attributes:
        name: as the demos call it; one of ours as its config field is called.
        type: with its bounds, for pydantic.
        help: one line.
        default: what it is where it is not given; PydanticUndefined where it must be given.
        places: the fields that it sets: (`architecture`, `attack`, `poisoning`, `inversion` or `defence`, path of the
            field). Empty where it names a cell or a model: see :class:`Target`.
        demo: the demos have it.
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
        name: as the demos call it.
        help: what it does, in one line.
        assets: the assets below the experiment that it makes, those it was asked for first; what they are made from
            is made before where it is missing.
        parameters: what it takes, the demos' first.
        not_needed: parameters of the demos that are accepted and change nothing here, and why, in one sentence.
        not_taken: parameters of the demos that are refused, since they ask for what is not done, and why.
        configs: the typed configs that it makes, by what they configure.
        defaults: (config, path of a field) -> what it is where no parameter gives it, other than the config says.
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
    """What an entry point works on, as its parameters name it; what is None was not named.

    Attributes:
        experiment: whose assets these are.
        model: architecture key of the model that is attacked, inverted, asked or used as the proxy model.
        model_name: the name under which it is registered in MLflow, instead of `model`. Where both are given, the key
            of the registered model is `model` or begins with `{model}@`.
        model_version: the version registered.
        asset: the set worked on, or of `gen_poison_test_data` the one made; one of `SETS`.
        architecture: architecture key of that set's cell.
        attack: attack key of that set's cell.
        defence: defence key of that set's cell, of a `defended_set`.
        image_set: key of the set that was defended, of a `defended_set`.
        run_id: the MLflow run of the cell that holds the set, instead of all these.
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
