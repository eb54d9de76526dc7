"""Names of stored image sets, as the parameters of a job and as keys of the dimension `image_set`."""

from collections.abc import Mapping
from typing import Any

from partitions.dynamic_keys import short_key
from partitions.entries import one_of
from partitions.keys import ARCHITECTURE, ATTACK, DEFENCE, IMAGE_SET

# Kinds of stored sets, and the dimensions that name a cell of each.
SETS: dict[str, tuple[str, ...]] = {
    "training_set": (),
    "testing_set": (),
    "adversarial_set": (ARCHITECTURE, ATTACK),
    "poisoned_training_set": (ATTACK,),
    "triggered_testing_set": (ATTACK,),
    "inverted_set": (ARCHITECTURE, ATTACK),
    "defended_set": (DEFENCE, IMAGE_SET),
}
SEPARATOR = "--"
# A key is the name of a folder, which takes 255 characters.
LONGEST = 200


def set_document(asset: str, partition: Mapping[str, str]) -> dict[str, Any]:
    """A stored set as JSON values, kept for sets with a short key."""
    return {"asset": asset, "partition": dict(partition)}


def set_key(asset: str, partition: Mapping[str, str]) -> str:
    """The key that names a stored set: `adversarial_set--le_net--fgm@eps=0.3`; a short one where that is too long."""
    key = SEPARATOR.join([asset, *(partition[dimension] for dimension in SETS[asset])])
    return key if len(key) <= LONGEST else short_key(asset, set_document(asset, partition))


def set_of(key: str) -> tuple[str, dict[str, str]]:
    """The asset and partition of a key that is not short.

    Raises:
        ValueError: when it names none.
    """
    asset, *keys = key.split(SEPARATOR)
    dimensions = SETS.get(asset, ())
    if asset == "defended_set" and len(keys) > 1:
        keys = [keys[0], SEPARATOR.join(keys[1:])]  # what follows is the key of the set that was defended
    if asset not in SETS or len(keys) != len(dimensions):
        example = SEPARATOR.join(["adversarial_set", "MODEL", "ATTACK"])
        raise ValueError(f"{key!r} names no stored set: write {example}; sets: {', '.join(SETS)}")
    return asset, dict(zip(dimensions, keys, strict=True))


def checked_set(asset: str) -> str:
    """The name of a kind of set; raises ValueError for any other."""
    if asset not in SETS:
        raise ValueError(f"{asset!r} is not allowed, {one_of(SETS)}")
    return asset
