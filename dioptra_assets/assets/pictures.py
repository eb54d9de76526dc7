"""Pictures in the UI: PNG inside Markdown."""

import base64

import dagster as dg


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A PNG as the UI shows it, with the text that stands for it."""
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")
