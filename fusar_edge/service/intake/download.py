"""Files from allowed hosts: no other host, no private address, no redirect away, no more bytes than agreed."""

from __future__ import annotations

import contextlib
import errno
import http.client
import ipaddress
import re
import socket
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fusar_edge import __version__
from fusar_edge.errors import BusyError, InputError

if TYPE_CHECKING:
    from fusar_edge.service.intake.intake import Intake

MOST_REDIRECTS = 3
TIMEOUT_S = 30.0
"""Without a byte."""
TRANSFER_S = 1800.0
"""For a whole file, however slowly it comes."""
PIECE = 1 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_EMBEDDED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))
"""IPv6 forms that carry an IPv4 address, which might be a private one: NAT64, 6to4, Teredo."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def checked_url(url: str) -> str:
    """The URL, if it is plain: http(s), printable ASCII, a host, no user name; InputError."""
    refusal = InputError("an address must be https://HOST/PATH in plain characters, without user name or spaces")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise refusal from None
    if (
        not re.fullmatch(r"[!-~]+", url)
        or "\\" in url
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or port == 0
    ):
        raise refusal
    return url


def shown(url: str) -> str:
    """Without its query, which may hold a signature."""
    return url.partition("?")[0].partition("#")[0][:300]


class Downloader:
    """Fetches for one intake, within its settings."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._hosts = intake.settings.stac.hosts
        self._most = intake.settings.limits.upload_mib << 20

    def small(self, url: str, most_bytes: int) -> bytes:
        """The whole content of a small file."""
        with self._opened(url, most_bytes) as answer:
            return b"".join(_pieces(answer, url, most_bytes))

    def to_incoming(self, url: str) -> Path:
        """A file of the intake's `incoming`, for the caller to give to `offer`; nothing stays there on failure."""
        self._intake.admit()
        path = self._intake.incoming / f"{uuid.uuid4().hex}.part"
        try:
            with self._opened(url, self._most) as answer, open(path, "xb") as file:
                if answer.length:
                    self._intake.admit(answer.length)
                for piece in _pieces(answer, url, self._most):
                    file.write(piece)
        except BaseException as problem:
            path.unlink(missing_ok=True)
            if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise BusyError("no space: the disk of the service is full or read-only", 60.0) from None
            raise
        return path

    @contextlib.contextmanager
    def _opened(self, url: str, most_bytes: int) -> Iterator[http.client.HTTPResponse]:
        """An answer 200 whose announced length is within the limit, after at most a few redirects among the hosts."""
        for _ in range(MOST_REDIRECTS + 1):
            with contextlib.ExitStack() as closing:
                connection = closing.enter_context(contextlib.closing(self._connection(url)))
                # Its own: a server that ends the connection makes http.client forget the answer's socket.
                answer = closing.enter_context(contextlib.closing(_asked(connection, url)))
                if answer.status in _REDIRECTS:
                    url = checked_url(urllib.parse.urljoin(url, answer.headers.get("Location", "")))
                    continue
                if answer.status != 200 or answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise InputError(f"{shown(url)} answered {answer.status}; check the address, or try again later")
                if answer.length is not None and answer.length > most_bytes:
                    raise InputError(f"{shown(url)} has {answer.length} bytes; at most {most_bytes} are taken")
                yield answer
                return
        raise InputError(f"{shown(url)}: more than {MOST_REDIRECTS} redirects; give the address that they lead to")

    def _connection(self, url: str) -> http.client.HTTPConnection:
        """To an address that was checked, so that the name cannot mean another one a moment later."""
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        shown_host = f"[{host}]" if ":" in host else host
        names = {f"{shown_host}:{port}"} | ({shown_host} if port == 443 else set())
        if not names & {entry.lower() for entry in self._hosts}:
            allowed = ", ".join(self._hosts) or "none"
            raise InputError(
                f"host {shown_host[:100]}:{port} is not allowed; stac.hosts of the settings has: {allowed}"
            )
        if parts.scheme != "https" and not _is_loopback_name(host):
            raise InputError(f"{shown(url)}: only https is fetched (http from this machine alone)")
        address = _checked_address(host, port)
        if parts.scheme == "https":
            return _PinnedHttps(host, port, address)
        return _Pinned(host, port, address)


class _Pinned(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, address: Address) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((str(self._address), self.port), TIMEOUT_S)


class _PinnedHttps(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, address: Address) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((str(self._address), self.port), TIMEOUT_S)
        try:
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def _asked(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": f"fusar-edge/{__version__}", "Accept-Encoding": "identity"}
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as problem:
        raise InputError(f"{shown(url)} cannot be fetched ({type(problem).__name__}); try again later") from None


def _pieces(answer: http.client.HTTPResponse, url: str, most_bytes: int) -> Iterator[bytes]:
    """The content, complete; InputError where it is cut, longer than allowed, or comes too slowly."""
    expected, taken, end = answer.length, 0, time.monotonic() + TRANSFER_S
    while True:
        try:
            piece = answer.read1(PIECE)
        except (OSError, http.client.HTTPException) as problem:
            raise InputError(f"{shown(url)}: the connection failed ({type(problem).__name__}); try again") from None
        if not piece:
            break
        taken += len(piece)
        if taken > most_bytes:
            raise InputError(f"{shown(url)} has more than {most_bytes} bytes, the most that is taken")
        if time.monotonic() > end:
            raise InputError(f"{shown(url)}: {taken} bytes came in {TRANSFER_S:.0f} s; send the file itself instead")
        yield piece
    if expected is not None and taken != expected:
        raise InputError(f"{shown(url)}: {taken} of {expected} bytes came; try again")


def _checked_address(host: str, port: int) -> Address:
    """The first address of a name, if all are such as may be asked: public ones; loopback for a loopback name; whatever
    the operator wrote as a literal address."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        found = [ipaddress.ip_address(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError, ValueError):
        raise InputError(f"host {host[:100]} has no address; check its name and the network") from None
    allowed = _is_loopback if _is_loopback_name(host) else is_public
    if not found or not all(map(allowed, found)):
        raise InputError(f"host {host[:100]} has an address that is not public; it is not asked")
    return found[0]


def is_public(address: Address) -> bool:
    """Reachable by anyone: not private, link-local, shared, loopback or multicast, also not in disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _EMBEDDED):
            return False
    return address.is_global and not address.is_multicast


def _is_loopback(address: Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_loopback_name(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
