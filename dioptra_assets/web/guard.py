"""Who is answered: what stands before Dagster's web server and before MLflow's.

By themselves both answer whatever page happens to be open in a browser of this machine. A guarded server answers
requests that name its own address, and that a browser says come from its own pages. Where a token is set, only who
holds it may launch; others look, or are refused.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resources.executors.choice import SettingError
from resources.user import USER_HEADER

# A page of anybody may send these without asking; JSON it may not.
FORMS = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
SHORTEST_TOKEN = 16
WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Attributes:
        user: a name, or empty. It is as true as whoever holds the token, or the proxy before the server, tells it.
        may_launch: whether this visitor may change anything.
    """

    user: str
    may_launch: bool


class Guard:
    """Refuses, with a status and a sentence, what no page of this server sends.

    Args:
        app: the server behind it; it finds the :class:`Visitor` in its scope, as `visitor`.
        hosts: further names it is reached by, `name`, `name:port` or `https://name`; by itself it is this machine's.
        token: whoever holds it may launch; empty: everyone who is answered at all may, in the name of `user`.
        open_to_all: whether visitors without the token may look.
        user: the name of visitors where no token is set.
        refuses: what this server refuses beside that: a path to a reason, or to an empty one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str] = (),
        token: str = "",
        open_to_all: bool = True,
        user: str = "",
        refuses: Callable[[str], str] = lambda path: "",
    ) -> None:
        self._app = app
        self._further = [urlsplit(host if "://" in host else f"//{host}") for host in hosts]
        self._token = token
        self._open_to_all = open_to_all
        self._user = user
        self._refuses = refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = self._stranger(scope) or self._login(scope) or self._admitted(scope)
        if answer is None:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": bytes(answer.body).decode()[:120]})
        else:
            await answer(scope, receive, send)

    def _stranger(self, scope: Scope) -> Response | None:
        """A refusal for what a page of another origin can send."""
        reason = next(self._reasons(scope), "")
        return refusal(reason) if reason else None

    def _reasons(self, scope: Scope) -> Iterator[str]:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        origins = self._origins(scope)
        if host not in origins:
            yield f"this server is {' or '.join(sorted(origins))}, not {host!r}"
        if origin is not None and origin != origins.get(host):
            yield "a page of another origin"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not _is_link(scope, headers):
            yield "a page of another site"
        if scope["type"] == "websocket":
            return
        method, content_type = scope["method"], headers.get("content-type", "").split(";")[0].strip().lower()
        if method in ("OPTIONS", "TRACE", "CONNECT"):
            yield f"{method} is not taken"
        if _is_graphql(scope) and (method != "POST" or content_type != "application/json"):
            yield "GraphQL is taken by POST, as application/json"
        if method == "POST" and content_type in FORMS:
            yield "forms are not taken: send application/json"
        if reason := self._refuses(scope["path"].rstrip("/")):
            yield reason

    def _origins(self, scope: Scope) -> dict[str, str]:
        """Each name this server is reached by -> the origin of its pages there."""
        port = (scope.get("server") or ("", None))[1]  # the one it listens on, by whatever option that was chosen
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
        origins = {f"{name}:{port}": f"{scheme}://{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        for further in self._further:
            origins[further.netloc] = f"{further.scheme or scheme}://{further.netloc}"
        return origins

    def _login(self, scope: Scope) -> Response | None:
        """`?token=...` on any page gives the browser a cookie and leads on to the page without it."""
        if not self._token or scope["type"] != "http" or scope["method"] != "GET":
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(asked).get("token")
        if given is None:
            return None
        if not _same(given, self._token):
            return refusal("this is not the token of this server", 401)
        rest = urlencode([(name, value) for name, value in asked if name not in ("token", "user")])
        path = "/" + quote(scope["path"]).lstrip("/")  # never another server, as `//name` would be
        answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        answer.set_cookie(
            self._cookie_name(scope),
            self._cookie(_printable(dict(asked).get("user", ""))),
            max_age=WEEK,
            httponly=True,
            samesite="strict",
            secure=self._origins(scope)[Headers(scope=scope)["host"]].startswith("https:"),
        )
        return answer

    def _admitted(self, scope: Scope) -> Response | None:
        """Write into the scope who asks, or refuse."""
        visitor = self._visitor(scope)
        if visitor is None:
            return refusal("this is not the token of this server", 401)
        if not visitor.may_launch:
            graphql = scope["path"].rstrip("/").endswith("/graphql")
            if not self._open_to_all:
                return refusal(
                    f"open http://{Headers(scope=scope)['host']}/?token=TOKEN once, or send it as Bearer", 401
                )
            if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and not graphql:
                return refusal("to change anything takes the token of this server")
        scope["visitor"] = visitor
        return None

    def _visitor(self, scope: Scope) -> Visitor | None:
        """Who asks, or None where a token was sent that is not this server's."""
        if not self._token:
            return Visitor(self._user, may_launch=True)
        connection = HTTPConnection(scope)
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            name = _printable(connection.headers.get(USER_HEADER, ""))
            return Visitor(name, may_launch=True) if _same(given.strip(), self._token) else None
        cookie = connection.cookies.get(self._cookie_name(scope), "")
        name = unquote(cookie.partition(".")[2])
        return Visitor(name, True) if cookie and _same(cookie, self._cookie(name)) else Visitor("", False)

    def _cookie_name(self, scope: Scope) -> str:
        # A browser gives a cookie of one port to all ports of the machine.
        return f"dioptra_assets_{(scope.get('server') or ('', 0))[1]}"

    def _cookie(self, user: str) -> str:
        """A name, signed: it cannot be changed to another, and does not give the token away."""
        signed = hmac.new(self._token.encode(), f"cookie of {user}".encode(), hashlib.sha256).hexdigest()
        return f"{signed}.{quote(user, safe='')}"


def token_of(variable: str) -> str:
    """The token that a setting holds, or empty.

    Raises:
        SettingError: when it could be guessed.
    """
    token = os.environ.get(variable, "")
    if token and len(token) < SHORTEST_TOKEN:
        raise SettingError(
            f"{variable} has {len(token)} characters, it must have {SHORTEST_TOKEN} or more: "
            "python -c 'import secrets; print(secrets.token_hex(16))'"
        )
    return token


def refusal(reason: str, status: int = 403) -> PlainTextResponse:
    """One sentence."""
    return PlainTextResponse(f"refused: {reason}\n", status)


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person follows a link to a page of this server: shown in a window of its own, it changes nothing."""
    document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return scope["type"] == "http" and scope["method"] == "GET" and document


def _is_graphql(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith("/graphql")


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _printable(name: str) -> str:
    """A name that goes into tags: a line of at most 100 letters, digits and signs."""
    return re.sub(r"[^\w.@+ -]", "", name)[:100].strip()


def _unframed(send: Send) -> Send:
    """No page of another site shows this one in a frame, where its buttons could be clicked unawares."""

    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-frame-options"]
            message = {**message, "headers": [*headers, (b"x-frame-options", b"SAMEORIGIN")]}
        await send(message)

    return with_header
