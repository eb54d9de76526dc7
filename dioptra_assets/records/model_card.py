"""The models of an experiment as a CycloneDX 1.6 bill of materials, a model card with each.

`cyclonedx-python-lib` knows components, hashes and dependencies; of a model card it knows nothing (`Component` of
release 11 has no `model_card`). So the library writes the bill, and each component's `modelCard` is added to its JSON,
by the names of section `modelCard` of the specification. The tests hold the whole to the library's own strict schema.
"""
# The decorators of the library hide its classes from pyright.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resources.models import MODEL
from resources.store import StoredCell

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

# What properties of ours are called, so that they are nobody else's.
NAMESPACE = "dioptra-assets"
PROPERTIES = ("parameters", "epochs", "seed", "device", "training_images", "validation_images")
FAMILIES = {
    "shallow_net": "feed-forward neural network",
    "le_net": "convolutional neural network",
    "alex_net": "convolutional neural network",
    "vgg16": "convolutional neural network",
    "resnet50": "residual neural network",
}
# What the weights of a model come out of; the rest attacks and measures.
FRAMEWORKS = ("tensorflow", "keras")
LIMITATIONS = (
    "Robust accuracy bounds the true robustness from above: an attack that was not run can do worse.",
    "Each rate holds for the images and the seed that were used; its interval (95 %, Wilson) covers the choice of"
    " images alone, not another training of the model.",
)
SPECIMEN = "A backdoor was planted in it on purpose: it is a specimen, not for use."


@dataclass(frozen=True)
class Rate:
    """One rate that was measured on a model, in [0, 1].

    Attributes:
        name: which, e.g. `robust accuracy`.
        slice: on what: the set, the attack, the model it was made on, the defence.
        value: the rate.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
    """

    name: str
    slice: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelRecord:
    """One model and what is known of it.

    Attributes:
        stored: the model.
        trained_on: the set it was fitted on; None where nothing was trained.
        rates: what was measured.
        limitations: sentences beside those that hold for every model.
    """

    stored: StoredCell
    trained_on: StoredCell | None
    rates: Sequence[Rate]
    limitations: Sequence[str] = ()


def model_card(
    experiment: str,
    description: str,
    models: Sequence[ModelRecord],
    testing_set: StoredCell,
    versions: Mapping[str, str],
) -> bytes:
    """The bill of materials of an experiment as CycloneDX 1.6 JSON; the same content gives the same bytes.

    Args:
        experiment: its name.
        description: of the experiment.
        models: every model.
        testing_set: what they were evaluated on.
        versions: software -> version.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    whole = Component(
        type=ComponentType.APPLICATION, name=experiment, bom_ref=experiment, description=description or None
    )
    software = {name: _software(name, version) for name, version in versions.items()}
    frameworks = [software[name] for name in FRAMEWORKS if name in software]
    sets = {s.cell.path: s for s in (*(m.trained_on for m in models), testing_set) if s is not None}
    data = {path: _data(stored) for path, stored in sets.items()}
    bom = Bom(components=[*software.values(), *data.values()])
    bom.metadata.component = whole
    bom.register_dependency(whole, software.values())
    for model in models:
        component = _model(model.stored)
        bom.components.add(component)
        used = [data[model.trained_on.cell.path]] if model.trained_on else []
        bom.register_dependency(component, [*used, *frameworks])
        bom.register_dependency(whole, [component])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The time of writing and a number drawn anew would make two bills of one content differ.
    del document["metadata"]["timestamp"]
    cards = {model.stored.cell.path: _card(model, testing_set) for model in models}
    for component in document["components"]:
        if component["bom-ref"] in cards:
            component["modelCard"] = cards[component["bom-ref"]]
    del document["serialNumber"]
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, content).urn
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _model(stored: StoredCell) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    facts = stored.manifest.attributes
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=stored.cell.path,
        bom_ref=stored.cell.path,
        version=stored.manifest.data_version,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=stored.manifest.files[MODEL].sha256)],
        properties=[
            Property(name=f"{NAMESPACE}:{name}", value=f"{facts[name]:g}" if name == "epochs" else str(facts[name]))
            for name in PROPERTIES
            if name in facts
        ],
    )


def _data(stored: StoredCell) -> "Component":
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    facts = stored.manifest.attributes
    return Component(
        type=ComponentType.DATA,
        name=stored.cell.path,
        bom_ref=stored.cell.path,
        # The hash of pixels, index and class names together; those of the files stand in the Croissant record.
        version=stored.manifest.data_version,
        properties=[Property(name=f"{NAMESPACE}:images", value=str(facts["n"]))],
    )


def _software(name: str, version: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if name == "Python":
        return Component(type=ComponentType.PLATFORM, name=name, bom_ref=name, version=version)
    url = PackageURL("pypi", name=re.sub(r"[-_.]+", "-", name).lower(), version=version)
    return Component(type=ComponentType.LIBRARY, name=name, bom_ref=url.to_string(), version=version, purl=url)


def family(architecture: str) -> str:
    """The family of an architecture; of somebody else's no more is known than that it is a network."""
    return FAMILIES.get(architecture, "neural network")


def _card(model: ModelRecord, testing_set: StoredCell) -> dict[str, Any]:
    facts = model.stored.manifest.attributes
    shape = " x ".join(map(str, facts["image_shape"]))
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": "image classification",
        "architectureFamily": family(facts["architecture"]),
        "modelArchitecture": facts["architecture"],
        "datasets": [{"ref": s.cell.path} for s in (model.trained_on, testing_set) if s is not None],
        "inputs": [{"format": f"float32 images {shape} (height, width, channels), pixels in [0, 1]"}],
        "outputs": [{"format": f"float32 logits of {len(facts['class_names'])} classes"}],
    }
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": _metrics(model.rates)},
        "considerations": {
            "useCases": ["Measuring how attacks and defences work on an image classifier."],
            "technicalLimitations": [*LIMITATIONS, *model.limitations],
        },
    }


def _metrics(rates: Iterable[Rate]) -> list[dict[str, Any]]:
    return [
        {"type": rate.name, "slice": rate.slice, "value": f"{rate.value:.6g}"}
        | {"confidenceInterval": {"lowerBound": f"{rate.low:.6g}", "upperBound": f"{rate.high:.6g}"}}
        for rate in rates
    ]
