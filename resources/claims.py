"""Whose experiment it is: two checkouts that declare one name differently would replace each other's cells.

The store remembers the folder that an experiment was first computed from, and what its file said last. Another folder
may go on where its file says the same (a second clone, a build machine); where it says something else it is refused. So
an edit is taken from the folder that the experiment belongs to, and from no other unasked.

Why: docs/decisions/0037-an-experiment-belongs-to-a-folder.md
"""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from resources.settings import read_env_file
from resources.store import CellStore
from resources.user import user_name

# One name for all checkouts that are to be the same, where folders come and go: build machines, containers.
OWNER_VARIABLE = "DIOPTRA_ASSETS_OWNER"


class ClaimedError(RuntimeError):
    """The experiment of that name in the store belongs to another checkout and is declared differently there."""


class Claim(BaseModel):
    """Who an experiment belongs to.

    Attributes:
        owner: what `DIOPTRA_ASSETS_OWNER` says, or the folder of the experiment's file, below the checkout where the
            store is in the checkout.
        digest: of what the file says.
        user: the account that computed it first.
        host: the machine.
        since: when, UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    owner: str
    digest: str
    user: str = ""
    host: str = ""
    since: str = ""


def own_claim(store: CellStore, folder: str, digest: str) -> Claim:
    """What this process would write."""
    read_env_file()
    owner = os.environ.get(OWNER_VARIABLE) or _place(store, Path(folder))
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Claim(owner=owner, digest=digest, user=user_name(), host=socket.gethostname(), since=since)


def _place(store: CellStore, folder: Path) -> str:
    """The folder; below its checkout where the store is in there too, and is moved with it."""
    checkout = folder.parents[min(2, len(folder.parents) - 1)]  # of PACKAGE/defs/NAME
    if not store.remote and Path(store.url).resolve().is_relative_to(checkout) and len(checkout.parts) > 1:
        return str(folder.relative_to(checkout))
    return str(folder)


def keep_to_claim(store: CellStore, experiment: str, folder: str, digest: str) -> None:
    """Refuse to compute cells of others, see :func:`refuse_others`; claim an experiment that nobody owns.

    Raises:
        ClaimedError, StoreError: see there.
    """
    refuse_others(store, experiment, folder, digest)
    mine, there = own_claim(store, folder, digest), claim_of(store, experiment)
    if there is None or (mine.owner == there.owner and mine.digest != there.digest):
        claim(store, experiment, folder, digest)


def refuse_others(store: CellStore, experiment: str, folder: str, digest: str) -> None:
    """Refuse to replace or remove cells of an experiment that others own and declare differently.

    Raises:
        ClaimedError: naming them, and what to do.
        StoreError: when the store does not answer.
    """
    mine, theirs = own_claim(store, folder, digest), claim_of(store, experiment)
    if theirs and mine.owner != theirs.owner and mine.digest != theirs.digest:
        raise ClaimedError(
            f"experiment {experiment!r} in {store.url} belongs to {theirs.owner} ({theirs.user} on {theirs.host}, since"
            f" {theirs.since}), and its file there differs from {folder}: each would replace what the other computed."
            f" Rename your folder {experiment!r} to keep both; or `dioptra-assets claim {experiment}` makes"
            f" it yours; or set {OWNER_VARIABLE} to one name wherever the two are meant to be the same"
        )


def claim_of(store: CellStore, experiment: str) -> Claim | None:
    """Who an experiment belongs to, None where nobody has computed it.

    Raises:
        ClaimedError: when the file that says so is damaged.
    """
    content = store.get(_path(experiment))
    if content is None:
        return None
    try:
        return Claim.model_validate_json(content)
    except ValidationError as error:
        raise ClaimedError(
            f"{store.url}/{_path(experiment)}, which says whose experiment {experiment!r} is, was altered or cut off:"
            f" `dioptra-assets claim {experiment}` makes it yours, if it is"
        ) from error


def claim(store: CellStore, experiment: str, folder: str, digest: str) -> None:
    """Make an experiment that of this checkout, whoever's it was."""
    store.put(_path(experiment), own_claim(store, folder, digest).model_dump_json().encode())


def _path(experiment: str) -> str:
    return f"owners of experiments/{experiment}.json"  # no experiment is called so
