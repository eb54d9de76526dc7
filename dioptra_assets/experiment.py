"""An experiment: one YAML file becomes one graph of assets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import JsonSchemaValue

from dioptra_assets.assets.adversarial_sets import adversarial_set_asset
from dioptra_assets.assets.config_assets import config_assets
from dioptra_assets.assets.datasets import dataset_assets
from dioptra_assets.assets.defended_sets import defended_set_assets
from dioptra_assets.assets.gates import gate_assets
from dioptra_assets.assets.inverted_sets import inverted_set_assets
from dioptra_assets.assets.keyed_configs import keyed_config_asset, knowing_kept_configs
from dioptra_assets.assets.metric_tables import metric_table_assets
from dioptra_assets.assets.models import model_assets
from dioptra_assets.assets.poisoned_sets import poisoned_set_assets
from dioptra_assets.assets.poisoning_tables import poisoning_table_assets
from dioptra_assets.assets.registered_models import registered_model_assets
from dioptra_assets.assets.report.asset import report_assets
from dioptra_assets.assets.sanity import model_sanity_asset, sanity_asset
from dioptra_assets.assets.workbench import workbench_assets
from dioptra_assets.automation.schedules import nightly_schedule
from dioptra_assets.automation.sensors import automation_sensor, registry_sensor
from dioptra_assets.registered_versions.verdicts import verdict_assets
from partitions.experiment_files import check_files
from partitions.experiments import ExperimentFile, ExperimentSpec, parse_experiment


class _Attributes(BaseModel):
    """Takes whatever the file says, so that what is wrong with it is said in one sentence and by one part of the code.

    Editors and `dg` are given the schema of the real fields.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> JsonSchemaValue:
        return handler.resolve_ref_schema(handler(ExperimentFile.__pydantic_core_schema__))


@dataclass
class Experiment(dg.Component):
    """Data, architectures, attacks and defences, declared in `defs/NAME/defs.yaml`.

    A list where a parameter takes one value is a sweep: `eps: [0.1, 0.3]` under `fgm` gives the attack configs
    `fgm_0.1` and `fgm_0.3`.
    """

    attributes: Mapping[str, Any]

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model that Dagster reads the file with."""
        return _Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "Experiment":
        """The component of a file."""
        return cls(attributes.model_dump() if attributes else {})

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets of the experiment.

        Raises:
            ExperimentError: a sentence for each mistake in the file.
        """
        check_files(context.path)
        spec = parse_experiment(context.path.name, self.attributes, str(context.path.resolve()))
        sensors = [registry_sensor(spec)] if spec.watch else []
        if spec.automation:
            sensors.append(automation_sensor(spec))
        schedules = [nightly_schedule(spec)] if spec.schedule else []
        return dg.Definitions(assets=experiment_assets(spec), sensors=sensors, schedules=schedules)


def experiment_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The whole graph of an experiment; of one that trains nothing, what the models that it watches need."""
    if spec.dynamic:
        spec = knowing_kept_configs(spec)
    watched = [*registered_model_assets(spec), *verdict_assets(spec)] if spec.watch else []
    if not spec.architectures and not spec.dynamic:
        return [*dataset_assets(spec), *config_assets(spec), *watched]
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        *dataset_assets(spec),
        *config_assets(spec),
        *model_assets(spec),
        *defended_set_assets(spec),
    ]
    if spec.attacks:
        assets += [adversarial_set_asset(spec), *metric_table_assets(spec)]
    if spec.poisonings:
        assets += [*poisoned_set_assets(spec), *poisoning_table_assets(spec)]
    if spec.inversions:
        assets += inverted_set_assets(spec)
    if spec.dynamic:
        # What comes as it is asked for is never complete: no asset goes over all of it.
        return [*assets, *workbench_assets(spec), keyed_config_asset(spec)]
    if spec.attacks:
        assets += [model_sanity_asset(spec), sanity_asset(spec)]
    assets += gate_assets(spec)
    return [*assets, *watched, *report_assets(spec)]
