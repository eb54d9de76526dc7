"""Dagster's web server behind a guard: `python -m dioptra_assets.ui -h 127.0.0.1 -p 3000 -w workspace.yaml`.

By itself it starts runs for whoever asks, whatever Host and Origin a request names and by GET as well, so that any page
open in a browser on this machine could; and it shows any notebook file of the machine. Guarded, it answers requests
that name its own address alone (`DIOPTRA_ASSETS_UI_HOSTS=name:port,...` for a proxy), and takes GraphQL as JSON alone.
"""

import os
import sys
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOSTS_VARIABLE = "DIOPTRA_ASSETS_UI_HOSTS"


class Guard:
    """Refuses, with 403 and a sentence, what no page of this server sends."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] in ("http", "websocket") and (reason := self._reason(scope)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": reason})
            else:
                await PlainTextResponse(f"refused: {reason}\n", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _reason(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts:
            return f"this server is {' or '.join(sorted(self._hosts))}; {HOSTS_VARIABLE} names others"
        if origin is not None and origin.split("://", 1)[-1] not in self._hosts:
            return "a page of another origin"
        path = scope["path"].rstrip("/")
        if path == "/notebook":
            return "no notebooks are shown here"
        if scope["type"] == "http" and path == "/graphql":
            if scope["method"] == "GET" and b"query" in scope["query_string"]:
                return "GraphQL is taken by POST"
            if scope["method"] == "POST" and headers.get("content-type", "").split(";")[0] != "application/json":
                return "GraphQL is taken as application/json"
        return ""


def allowed_hosts(arguments: Sequence[str]) -> list[str]:
    """The values of `Host` that are answered: this machine's names at the port, and those of the setting."""
    port = next((arguments[at + 1] for at, word in enumerate(arguments[:-1]) if word in ("-p", "--port")), "3000")
    named = [host.strip() for host in os.environ.get(HOSTS_VARIABLE, "").split(",") if host.strip()]
    return [f"127.0.0.1:{port}", f"localhost:{port}", *named]


def main() -> None:
    """Start Dagster's web server, guarded, with its own command line."""
    from dagster_webserver.cli import main as serve
    from dagster_webserver.webserver import DagsterWebserver

    unguarded = DagsterWebserver.build_middleware
    hosts = allowed_hosts(sys.argv[1:])

    def build_middleware(self: DagsterWebserver) -> list[Middleware]:
        return [Middleware(Guard, hosts=hosts), *unguarded(self)]

    DagsterWebserver.build_middleware = build_middleware  # it has no setting for this
    serve()


if __name__ == "__main__":
    main()
