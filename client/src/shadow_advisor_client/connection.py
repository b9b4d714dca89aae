"""How a service is reached: decided once, so that what cannot work is said before anything is sent.

A proxy of the environment is used, except to this machine; which, `proxy` tells. `.netrc` is not
read. `SSL_CERT_FILE` counts where certificates do, with https.
"""

from __future__ import annotations

import os
import ssl
from ipaddress import ip_address
from numbers import Real
from urllib.request import getproxies, proxy_bypass

import httpx

MOST = 1e15
MAY_BE_NOTHING = {
    "deadline_s",
    "breaker_pause_s",
    "first_backoff_s",
    "max_backoff_s",
    "exit_budget_s",
}


class ConfigurationError(ValueError):
    """What was given, or what the environment says, cannot work; the message names it."""


def require_numbers(**settings: object) -> None:
    """Raise `ConfigurationError` for a setting that is no number, or beyond what anybody waits or
    keeps, or nothing where that would lose every message."""
    for name, value in settings.items():
        number = not isinstance(value, bool) and isinstance(value, Real)
        least = 0 if name in MAY_BE_NOTHING else 1e-9
        if not number or not least <= float(value) < MOST:  # type: ignore[arg-type]
            some = "from 0" if name in MAY_BE_NOTHING else "above 0"
            raise ConfigurationError(f"{name} is {value!r}: a number {some}, below {MOST:g}")


def checked_token(token: str | None) -> str | None:
    """A token that was given. Raises `ConfigurationError`, which does not repeat it, for one that
    no header can carry."""
    if token is not None and not (isinstance(token, str) and is_sendable(token)):
        raise ConfigurationError("the token is not one word of ASCII")
    return token


def is_sendable(token: str) -> bool:
    """Whether a header can carry a token."""
    return token.isascii() and token.isprintable() and " " not in token


class Connection:
    """The way to one service.

    Raises `ConfigurationError` for a wrong address, proxy or file of certificates.
    """

    def __init__(self, base_url: str) -> None:
        self.url = _checked(base_url)
        self._proxy = _proxy_to(self.url)
        self._certificates = _certificates(self.url)
        try:
            self.open(1.0).close()
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise ConfigurationError(f"cannot reach {self}: {error}") from error

    @property
    def proxy(self) -> str | None:
        """The proxy that is used, without its password; None when there is none."""
        return None if self._proxy is None else str(self._proxy.url)

    def open(self, timeout_s: float) -> httpx.Client:
        """What sends requests. To be closed."""
        return httpx.Client(
            base_url=self.url,
            proxy=self._proxy,
            verify=self._certificates,
            trust_env=False,
            timeout=timeout_s,
        )

    def __str__(self) -> str:
        address = str(self.url.copy_with(userinfo=b"")).rstrip("/")
        return address if self.proxy is None else f"{address} through the proxy {self.proxy}"


def is_this_machine(host: str | None) -> bool:
    """Whether a host of an address is the machine that asks."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _checked(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"{base_url!r} is not the address of a service: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            f"{base_url!r} is not the address of a service, as http://127.0.0.1:8321 is"
        )
    if url.query or url.fragment or any(mark.isspace() for mark in base_url.strip()):
        raise ConfigurationError(f"{base_url!r} is not the address of a service: it has more parts")
    if url.path.rstrip("/").endswith("/advise"):
        raise ConfigurationError(
            f"{base_url!r} is not the address of a service: write what stands before /advise"
        )
    if url.port is not None and not 0 < url.port < 65536:
        raise ConfigurationError(f"{base_url!r} has a port that is not between 1 and 65535")
    return url


def _proxy_to(url: httpx.URL) -> httpx.Proxy | None:
    """The environment's proxy for an address. This machine needs none."""
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if address is None or is_this_machine(url.host) or proxy_bypass(url.host):
        return None
    try:
        return httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"the environment's proxy for {url.scheme} addresses is of no use: {error}"
        ) from None


def _certificates(url: httpx.URL) -> ssl.SSLContext:
    """Whom to trust. Without https nobody is asked, and nothing is read."""
    if url.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        file = os.environ.get("SSL_CERT_FILE")
        raise ConfigurationError(
            f"no certificates can be read (SSL_CERT_FILE is {file!r}): {error}"
        ) from error
