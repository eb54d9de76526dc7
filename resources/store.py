"""The asset store as a Dagster resource."""

import dagster as dg

from resources.cells import CellStore


class StoreResource(dg.ConfigurableResource):
    """Where the values of all assets are kept.

    Attributes:
        url: a folder, or `s3://bucket/prefix` (credentials and endpoint from the usual `AWS_` variables).
    """

    url: str

    def cells(self) -> CellStore:
        """The store."""
        return CellStore(self.url)
