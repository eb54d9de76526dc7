"""Dagster's web server behind a guard: `python -m dioptra_assets.web.ui -h 127.0.0.1 -p 3000 -w workspace.yaml`.

By itself it starts runs for whoever asks, whatever Host and Origin a request names and by GET as well, so that any page
open in a browser on this machine could; and it shows any notebook file of the machine. It takes Dagster's own options,
and from the environment

| setting | meaning | default |
|---|---|---|
| `DIOPTRA_ASSETS_UI_TOKEN` | who holds it may launch; all others look | none: everyone on this machine may |
| `DIOPTRA_ASSETS_UI_VIEWERS` | `nobody`: without the token there is nothing to see | `everybody` |
| `DIOPTRA_ASSETS_UI_HOSTS` | names it is reached by beside this machine's: `name:port,https://name` | none |

Why: docs/decisions/0026-the-ui-is-guarded.md
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from dagster_webserver import app as dagster_app
from dagster_webserver.cli import main as serve
from dagster_webserver.webserver import DagsterWebserver
from graphene import Schema
from graphql import GraphQLError
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from dioptra_assets.api.submission import TOKEN_VARIABLE
from dioptra_assets.dagster_internals import WorkspaceRequestContext
from dioptra_assets.web.guard import Guard, Visitor, token_of
from resources.executors.choice import SettingError
from resources.user import USER_TAG, user_name, user_tags

VIEWERS_VARIABLE = "DIOPTRA_ASSETS_UI_VIEWERS"
HOSTS_VARIABLE = "DIOPTRA_ASSETS_UI_HOSTS"
# What the pages themselves send, whoever looks at them; it changes nothing of anybody's.
HARMLESS = ("logTelemetry", "setNuxSeen")


class VisitorContext(WorkspaceRequestContext):
    """A request of somebody: Dagster asks it what they may, and shows its buttons accordingly."""

    visitor: Visitor


class GuardedWebserver(DagsterWebserver):
    """Dagster's web server, which knows who asks."""

    def build_middleware(self) -> list[Middleware]:
        """The guard stands before everything."""
        return [Middleware(Guard, **guard_settings()), *super().build_middleware()]

    def build_graphql_schema(self) -> Schema:
        """Dagster's, with each mutation asking who launches."""
        schema = super().build_graphql_schema()
        mutations = schema.graphql_schema.mutation_type
        assert mutations is not None
        for name, field in mutations.fields.items():
            assert field.resolve is not None
            field.resolve = _asked_by_somebody(name, field.resolve)
        return schema

    def _make_request_context(self, conn: HTTPConnection) -> WorkspaceRequestContext:
        plain = super()._make_request_context(conn)
        visitor: Visitor = conn.scope["visitor"]
        context = VisitorContext(
            instance=plain.instance,
            current_workspace=plain.get_current_workspace(),
            process_context=plain.process_context,
            version=plain.version,
            source=plain.source,
            read_only=plain.read_only or not visitor.may_launch,
        )
        context.visitor = visitor
        return context


def _asked_by_somebody(name: str, resolve: Callable[..., Any]) -> Callable[..., Any]:
    """A mutation that viewers are refused, and that writes who launched into the tags of what it launches."""

    def asked(root: Any, info: Any, **arguments: Any) -> Any:
        visitor: Visitor = info.context.visitor
        if not visitor.may_launch and name not in HARMLESS:
            raise GraphQLError(f"{name}: viewers may look; to change anything takes the token of this server")
        sign(arguments, user_tags(visitor.user))
        return resolve(root, info, **arguments)

    return asked


def sign(arguments: dict[str, Any], tags: dict[str, str]) -> None:
    """Put tags in the place of those that a request brought, wherever a mutation takes tags of runs."""
    for params in (arguments.get("executionParams"), *(arguments.get("executionParamsList") or ())):
        if params:
            metadata = params.get("executionMetadata") or {}
            params["executionMetadata"] = metadata | {"tags": _signed(metadata.get("tags"), tags)}
    if again := arguments.get("reexecutionParams"):
        again["extraTags"] = _signed(again.get("extraTags"), tags)
    if backfill := arguments.get("backfillParams"):
        backfill["tags"] = _signed(backfill.get("tags"), tags)


def _signed(given: Any, tags: dict[str, str]) -> list[dict[str, str]]:
    kept = [tag for tag in given or () if tag["key"] != USER_TAG]
    return [*kept, *({"key": key, "value": value} for key, value in tags.items())]


def ping(connection: Any, *_: Any) -> None:
    """Have a connection that a restarted Postgres has closed replaced by another, before a request finds out."""
    if type(connection).__module__.startswith("psycopg2"):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except Exception as error:
            raise DisconnectionError(str(error)) from error


def guard_settings() -> dict[str, Any]:
    """What the environment says about who is answered.

    Raises:
        SettingError: when a setting has a value that is not allowed.
    """
    viewers = os.environ.get(VIEWERS_VARIABLE) or "everybody"
    if viewers not in ("everybody", "nobody"):
        raise SettingError(f"{VIEWERS_VARIABLE}={viewers} is not allowed, it must be everybody or nobody")
    return {
        "hosts": [host.strip() for host in os.environ.get(HOSTS_VARIABLE, "").split(",") if host.strip()],
        "token": token_of(TOKEN_VARIABLE),
        "open_to_all": viewers == "everybody",
        "user": user_name(),
        "refuses": lambda path: "no notebooks are shown here" if path.endswith("/notebook") else "",
    }


def main() -> None:
    """Start Dagster's web server, guarded, with its own command line."""
    try:
        guard_settings()
    except SettingError as error:
        sys.exit(str(error))
    event.listen(Pool, "checkout", ping)  # Dagster makes its pools without `pool_pre_ping`
    dagster_app.DagsterWebserver = GuardedWebserver  # pyright: ignore[reportPrivateImportUsage]  # no setting
    serve()


if __name__ == "__main__":
    main()
