"""The address of the page, and who may use it: trusted hosts, its own pages, a password."""

import contextlib
import errno
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from detsd.utils.errors import UserError

LOCAL = ("localhost", "127.0.0.1", "::1")


class SameOriginOnly:
    """ASGI middleware that refuses requests from pages of other sites, including uploads.

    Args:
        trusted: other hosts whose pages may send requests, such as a proxy's name.
    """

    def __init__(self, app: Any, trusted: tuple[str, ...]):
        self.app, self.trusted = app, trusted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        app = self.app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            # Browsers name the site of the page that sends a request. gradio's `strict_cors` only
            # withholds the response: the upload would be stored.
            site = re.fullmatch(r"https?://(([^/@]+?)(:\d+)?)", headers.get("origin", ""))
            own = site and (site[1] == headers.get("host") or site[2] in self.trusted)
            if "origin" in headers and not own:
                app = PlainTextResponse("this page takes no requests from other sites", 403)
        await app(scope, receive, send)


@dataclass(frozen=True)
class Address:
    """The address that the page listens on, and who may use it.

    Attributes:
        allow_hosts: other host names that requests may use, such as a proxy's.
        auth: the `user:password` that the page asks for.
        no_auth: whether it asks for none although other machines can reach it.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allow_hosts: tuple[str, ...] = ()
    auth: str | None = None
    no_auth: bool = False

    @property
    def bare_host(self) -> str:
        """The host without the brackets of an IPv6 address."""
        return self.host.strip("[]")

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the page."""
        try:
            return ipaddress.ip_address(self.bare_host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def _check_names(self) -> None:
        """Refuse what can be no host name, such as an address of the web: it would never match."""
        for name in self.allow_hosts:
            if not re.fullmatch(r"(\*\.)?[\w.-]+|\[?[0-9a-fA-F:]+\]?", name):
                raise UserError(
                    f"--allow-host {name} is not a host name; give the name alone, without "
                    "http:// and port, such as demo.example"
                )

    def trusted_hosts(self) -> list[str]:
        """Return the host names that requests to the page may use.

        Without this list, a browser would treat pages under a foreign name that points at this
        machine as the same site as ours (DNS rebinding).
        """
        names = {*LOCAL, self.bare_host, *self.allow_hosts}
        if self.bare_host in ("0.0.0.0", "::"):
            names |= {socket.gethostname(), socket.getfqdn()}
            for addresses in psutil.net_if_addrs().values():
                internet = [a for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)]
                names |= {a.address.partition("%")[0] for a in internet}
        return sorted(f"[{name}]" if ":" in name else name.lower() for name in names)

    def middleware(self) -> list[Middleware]:
        """Return the middleware that guards the page."""
        return [
            Middleware(
                TrustedHostMiddleware, allowed_hosts=self.trusted_hosts(), www_redirect=False
            ),
            Middleware(SameOriginOnly, trusted=tuple(map(str.lower, self.allow_hosts))),
        ]

    def credentials(self) -> tuple[str, str] | None:
        """Return the page's user and password, generated if other machines can reach it."""
        if self.auth and self.no_auth:
            raise UserError("--auth and --no-auth are both given; remove one of them")
        if self.auth:
            user, _, password = self.auth.partition(":")
            if not user or not password:
                raise UserError("--auth must be USER:PASSWORD; give both")
            return user, password
        return None if self.no_auth or self.is_local else ("detsd", secrets.token_urlsafe(12))

    def check(self) -> None:
        """Refuse an address that the page cannot have, before a model is loaded for it."""
        self.credentials()
        self._check_names()
        host, port = self.host, self.port
        if port is not None and not 1 <= port <= 65535:
            raise UserError(f"--port {port} is not a port; give one from 1 to 65535")
        problem = f"--host {host} is not an address of this machine; give another one"
        try:
            family = socket.getaddrinfo(self.bare_host, port, type=socket.SOCK_STREAM)[0][0]
            socket.create_server((self.bare_host, port or 0), family=family).close()
        except (OSError, UnicodeError) as error:
            if isinstance(error, PermissionError):
                problem = f"--port {port} needs more rights than you have; give a higher one"
            elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                problem = f"--port {port} is taken on {host}; give another one"
            raise UserError(problem) from None


@contextlib.contextmanager
def no_proxy() -> Iterator[None]:
    """Ignore proxies: gradio sends requests to its own page, some prepared during its import."""
    # With `all_proxy=socks5://...` its import fails; with `http_proxy` it asks the proxy for it.
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        os.environ.pop("no_proxy")
        if before is not None:
            os.environ["no_proxy"] = before
