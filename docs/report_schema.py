"""The JSON schema of a report, written from its types: `python -m docs.report_schema`."""

from pathlib import Path

from dioptra_assets.robustness.reporting.document import schema

SCHEMA = Path(__file__).parent / "reference" / "report.schema.json"

if __name__ == "__main__":
    SCHEMA.write_bytes(schema())
