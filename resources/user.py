"""Who launched a run, as its tags tell."""

import getpass

# The tag of a run, and of a backfill, that names who launched it.
USER_TAG = "dioptra_assets/user"
# How a proxy, or the command line, names that person to a server, beside the token that makes it believed.
USER_HEADER = "X-Forwarded-User"


def user_tags(name: str) -> dict[str, str]:
    """The tags of a run that somebody launched."""
    return {USER_TAG: name} if name else {}


def user_name() -> str:
    """The person this process works for: the account it runs under."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        return ""
