"""Who is told: the field `notify` of an experiment file."""

import os
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator


def _address(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must begin with https:// or http://")
    return url


class Notify(BaseModel):
    """Who is told of a version that failed, or that could not be judged.

    Attributes:
        env: the environment variable that holds the address of the webhook, read when a message is sent.
        url: the address itself; whoever may read the file may then write to the webhook.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    env: str = ""
    url: Annotated[SecretStr, AfterValidator(_address)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Notify":
        if bool(self.env) == bool(self.url):
            raise ValueError("give one of `env` (the name of an environment variable) and `url`")
        return self

    def address(self) -> str:
        """Where to send.

        Raises:
            ValueError: the environment variable is not set, or is no address.
        """
        if self.url:
            return self.url.get_secret_value()
        try:
            return _address(SecretStr(os.environ.get(self.env, ""))).get_secret_value()
        except ValueError as error:
            raise ValueError(f"the environment variable {self.env} holds no address of a webhook: {error}") from None
