"""Partition keys: names that are safe in Dagster, in a path and in a URL."""

import re
from collections.abc import Mapping

ARCHITECTURE = "architecture"
ATTACK = "attack"
DEFENCE = "defence"
IMAGE_SET = "image_set"
CONFIG_KEY = "config_key"
KEY_RULE = "1 to 100 of the characters A-Z a-z 0-9 _ . @ = -, without a dot at the beginning and without three in a row"
_KEY = re.compile(r"(?!\.)(?!.*\.\.\.)[A-Za-z0-9_.@=-]{1,100}")


def is_key(key: str) -> bool:
    """Whether `key` can be a partition key.

    Dagster accepts a key with `|` in a dynamic dimension and then loses it, and reads three dots as a range of keys.
    """
    return _KEY.fullmatch(key) is not None


def key_text(value: object) -> str:
    """A parameter value as it stands in a key, written as in YAML: 0.3, inf, true, null."""
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    return str(value)


def partition_of(dimensions: tuple[str, ...], partition_key: str | None) -> dict[str, str]:
    """Dimension -> key of a Dagster partition key; `dimensions` in the order of the alphabet, as in the key."""
    keys = partition_key.split("|") if partition_key is not None else []
    if len(keys) != len(dimensions):
        raise ValueError(
            f"the partition key {partition_key!r} does not fit the dimensions {dimensions or 'of no partition'}"
        )
    return dict(zip(dimensions, keys, strict=True))


def partition_key_of(partition: Mapping[str, str]) -> str | None:
    """The Dagster partition key of a cell: dimensions in the order of the alphabet."""
    return "|".join(partition[dimension] for dimension in sorted(partition)) or None
