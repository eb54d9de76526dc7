"""The values that docs/guides/executors.md gives for Dagster's Helm chart pass the chart's own schema."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "tests" / "data" / "helm" / "dagster-user-deployments.values.schema.json"
DOCUMENT = ROOT / "docs" / "guides" / "executors.md"


def values() -> dict[str, Any]:
    """The one YAML block of the page that is for the chart."""
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "dagster-user-deployments" in block]
    return yaml.safe_load(block)


def schema_of(definition: str) -> dict[str, Any]:
    """One definition of the schema; what it says of Kubernetes' own objects stands elsewhere and is not asked for."""
    schema = json.loads(SCHEMA.read_text())

    def local(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: local(value) for name, value in part.items() if name != "$ref" or value.startswith("#")}
        return [local(value) for value in part] if isinstance(part, list) else part

    return local(schema) | {"required": [], "properties": {}, "$ref": f"#/definitions/{definition}"}


def test_the_values_of_the_documentation_pass_the_schema_of_the_chart() -> None:
    (deployment,) = values()["dagster-user-deployments"]["deployments"]
    jsonschema.Draft7Validator(schema_of("UserDeployment")).validate(deployment)
    known = json.loads(SCHEMA.read_text())["definitions"]["UserDeployment"]["properties"]
    assert set(deployment) <= set(known)
    for name in ("envConfigMaps", "envSecrets"):
        assert all(set(source) == {"name"} for source in deployment[name])


@pytest.mark.parametrize("lost", ["pullPolicy", "repository"])
def test_values_that_lack_what_the_chart_requires_are_found(lost: str) -> None:
    (deployment,) = copy.deepcopy(values()["dagster-user-deployments"]["deployments"])
    del deployment["image"][lost]
    with pytest.raises(jsonschema.ValidationError, match=lost):
        jsonschema.Draft7Validator(schema_of("UserDeployment")).validate(deployment)
