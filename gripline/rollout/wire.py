"""Messages of small JSON values and large arrays over TCP, between an env worker and a policy server.

A call between Ray actors takes 3 to 11 ms on two laptop cores, most of them wake-ups of threads; a chunk of a simulator
may take less. So Ray places and names the processes, and what goes back and forth for every chunk goes directly.

A frame is two little-endian 32-bit lengths (header, arrays), a JSON header {"body", "arrays": [[dtype, shape], …]} and
the arrays' bytes. Nothing in it is ever executed. Whoever connects says a token first that only Ray's actors know.
"""

import asyncio
import hmac
import json
import math
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LENGTHS = struct.Struct("<II")
MAX_BYTES = 2**30
"""Of one frame; more is a stranger's."""
NUMBERS = "biuf"
"""Kinds of dtype. An array of objects would be pointers, which a stranger must not choose."""
CONNECT_TIMEOUT_S = 30.0
Body = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    token: str = field(repr=False)


class Connection(asyncio.BufferedProtocol):
    """One end. Both callbacks come on the event loop that the connection was made on."""

    def __init__(
        self,
        received: Callable[["Connection", Body, list[np.ndarray]], None],
        closed: Callable[["Connection"], None],
        token: str = "",
    ) -> None:
        """token: what the other end has to say first; empty: nothing."""
        self._received, self._closed, self._token = received, closed, token
        self.peer = ""
        """The name that the other end gave itself with its token."""
        self._transport: asyncio.Transport | None = None
        self._buffer, self._filled = bytearray(LENGTHS.size), 0
        self._header_bytes: int | None = None
        """Of the frame in work; None while its lengths are awaited."""

    @property
    def is_open(self) -> bool:
        """May messages be sent?"""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, body: Body, arrays: Sequence[np.ndarray] = ()) -> None:
        """Send a message; nothing happens where the connection is closed: `closed` has told, or will tell."""
        if self._transport is not None and self.is_open:
            self._transport.writelines(_frame(body, arrays))

    def close(self) -> None:
        """Close it, whatever was not sent yet; `closed` is called soon."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        connected = transport.get_extra_info("socket")
        # A lost machine says no farewell; without this, a connection to it would look alive for hours.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self._filled += nbytes
        if self._filled < len(self._buffer):
            return
        if self._header_bytes is None:
            header_bytes, array_bytes = LENGTHS.unpack(self._buffer)
            if not header_bytes or header_bytes + array_bytes > MAX_BYTES:
                self.close()
                return
            self._header_bytes, self._buffer, self._filled = header_bytes, bytearray(header_bytes + array_bytes), 0
            return
        frame, header_bytes = memoryview(self._buffer), self._header_bytes
        self._header_bytes, self._buffer, self._filled = None, bytearray(LENGTHS.size), 0
        self._take(frame[:header_bytes], frame[header_bytes:])

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._closed(self)

    def _take(self, header: memoryview, content: memoryview) -> None:
        try:
            parsed = json.loads(bytes(header))
            body, arrays = parsed["body"], _arrays(parsed["arrays"], content)
            if self._token:
                if not hmac.compare_digest(str(body["token"]), self._token):
                    self.close()
                    return
                self._token, self.peer = "", str(body["name"])
                return
        except (ValueError, KeyError, TypeError):  # not one of ours
            self.close()
            return
        self._received(self, body, arrays)


async def listen(
    host: str, received: Callable[[Connection, Body, list[np.ndarray]], None], closed: Callable[[Connection], None]
) -> Address:
    """Serve on a free port of `host` for as long as the event loop runs."""
    token = secrets.token_hex(16)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(received, closed, token), host, 0)
    return Address(host, server.sockets[0].getsockname()[1], token)


async def connect(
    address: Address,
    name: str,
    received: Callable[[Connection, Body, list[np.ndarray]], None],
    closed: Callable[[Connection], None],
) -> Connection:
    """Connect under a name. Raises OSError, TimeoutError among them."""
    loop = asyncio.get_running_loop()
    opening = loop.create_connection(lambda: Connection(received, closed), address.host, address.port)
    _, connection = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
    connection.send({"token": address.token, "name": name})
    return connection


def _frame(body: Body, arrays: Sequence[np.ndarray]) -> list[Any]:
    whole = [np.asarray(array, order="C") for array in arrays]
    header = json.dumps({"body": body, "arrays": [[array.dtype.str, array.shape] for array in whole]}).encode()
    lengths = LENGTHS.pack(len(header), sum(array.nbytes for array in whole))
    return [lengths, header, *(np.atleast_1d(array).reshape(-1).view(np.uint8).data for array in whole)]


def _arrays(described: list[tuple[str, list[int]]], content: memoryview) -> list[np.ndarray]:
    """Views of the frame, without a copy. Raises ValueError or TypeError where they do not fill it."""
    arrays: list[np.ndarray] = []
    offset = 0
    for name, shape in described:
        dtype, count = np.dtype(name), math.prod(shape)
        if dtype.kind not in NUMBERS or any(side < 0 for side in shape):
            raise ValueError("not an array of numbers")
        flat = np.frombuffer(content, dtype, count, offset) if count else np.empty(0, dtype)
        arrays.append(flat.reshape(shape))
        offset += flat.nbytes
    if offset != len(content):
        raise ValueError("arrays do not fill the frame")
    return arrays
