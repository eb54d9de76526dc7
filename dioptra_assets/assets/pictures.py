"""Pictures and texts from data in the UI, as Markdown."""

import base64
import re
import string

import dagster as dg
import pandas as pd


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A PNG as the UI shows it, with the text that stands for it."""
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")


def as_text(value: object) -> str:
    """Text from data, for Markdown that the UI shows: every character as it is, tags and bars included."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", str(value))


def markdown_table(table: pd.DataFrame) -> str:
    """A table as Markdown, its texts as they are."""
    names = [name for name in table if table[name].dtype == object or str(table[name].dtype) in {"str", "string"}]
    return table.assign(**{str(name): table[name].map(as_text) for name in names}).to_markdown(index=False)
