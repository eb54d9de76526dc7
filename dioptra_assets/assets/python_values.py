"""What a stored cell is in Python."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from resources import documents, image_store, models, tables
from resources.store import StoredCell


@dataclass(frozen=True)
class Report:
    """A report page, which shows itself in a notebook.

    Attributes:
        name: the asset it is.
        html: the whole page.
        stored: where it was read from, with the records beside it.
    """

    name: str
    html: str
    stored: StoredCell = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, and the records that it links to beside it."""
        from dioptra_assets.records.croissant import located

        target = Path(path)
        target.write_text(self.html)
        for name, content in documents.read_records(self.stored).items():
            sets = name.endswith(".croissant.json")
            target.with_name(name).write_bytes(located(content, self.stored.store) if sets else content)
        return target

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:800px;border:0"></iframe>'


def value_of(stored: StoredCell) -> Any:
    """The value of a cell: an image set, a Keras model, a table, a typed config or a report.

    Raises:
        DamagedCellError: when what is stored is not what was written.
    """
    kind = stored.manifest.kind
    if kind == tables.KIND:
        return tables.read_table(stored)
    if kind == image_store.KIND:
        return image_store.read_image_set(stored)
    if kind == models.KIND:
        return models.read_model(stored)
    if kind == documents.REPORT:
        return Report(str(stored.cell), documents.read_report(stored), stored)
    return _config(stored)


def _config(stored: StoredCell) -> Any:
    # Dagster is not imported for a table.
    from dioptra_assets.assets.config_assets import CONFIGS
    from dioptra_assets.assets.keyed_configs import KEYED_CONFIG
    from dioptra_assets.robustness.training.loop import TrainingRecipe
    from partitions.attacks import attack_of

    document = documents.read_config(stored)
    for family, (name, _) in CONFIGS.items():
        if stored.cell.asset.endswith(f"/{name}"):
            return attack_of(document, family)
    # What a short key stands for may be of any kind, and is given as it is kept.
    return document if stored.cell.asset.endswith(f"/{KEYED_CONFIG}") else TrainingRecipe.model_validate(document)
