"""Frames between env workers and policy servers, over real sockets; and what happens to a stranger's."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from gripline.rollout import wire

DTYPES = (np.uint8, np.int64, np.float32, np.float64)
Message = tuple[wire.Connection, wire.Body, list[np.ndarray]]


class Ends:
    """A server and what it heard; `connect` makes further clients."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.closed: asyncio.Queue[str] = asyncio.Queue()
        self.address = wire.Address("", 0, "")

    async def start(self) -> "Ends":
        self.address = await wire.listen(
            "127.0.0.1", lambda *message: self.heard.put_nowait(message), lambda _: self.closed.put_nowait("server's")
        )
        return self

    async def connect(self, name: str = "a worker") -> wire.Connection:
        return await wire.connect(
            self.address,
            name,
            lambda *message: self.answers.put_nowait(message),
            lambda _: self.closed.put_nowait("client's"),
        )


def with_ends(test: Callable[[Ends], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(test(await Ends().start()), 20)

    asyncio.run(run())


numbers = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=5), st.integers()), st.lists(numbers, max_size=4))))
def test_messages_arrive_in_order_and_to_the_last_bit(messages: list[tuple[dict[str, int], list[np.ndarray]]]) -> None:
    async def exchange(ends: Ends) -> None:
        connection = await ends.connect()
        for body, arrays in messages:
            connection.send(body, arrays)
        for body, arrays in messages:
            _, heard, got = await ends.heard.get()
            assert heard == body and len(got) == len(arrays)
            for there, here in zip(got, arrays, strict=True):
                assert there.dtype == here.dtype and there.shape == here.shape and there.tobytes() == here.tobytes()

    with_ends(exchange)


def test_large_messages_and_views_go_both_ways() -> None:
    """Catches: a frame that arrives in pieces, and an array that does not lie in memory as it is read."""
    large = np.random.default_rng(0).integers(0, 256, (8, 512, 512, 3), np.uint8)
    view = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T

    async def exchange(ends: Ends) -> None:
        connection = await ends.connect("worker 7")
        for _ in range(3):
            connection.send({"n": 1}, [large, view])
        for _ in range(3):
            sender, _, (got_large, got_view) = await ends.heard.get()
            assert sender.peer == "worker 7"
            np.testing.assert_array_equal(got_large, large)
            np.testing.assert_array_equal(got_view, view)
            sender.send({"answer": 2}, [view])
            _, body, (back,) = await ends.answers.get()
            assert body == {"answer": 2}
            np.testing.assert_array_equal(back, view)

    with_ends(exchange)


def raw(header: bytes, content: bytes = b"", *, lengths: tuple[int, int] | None = None) -> bytes:
    return wire.LENGTHS.pack(*(lengths or (len(header), len(content)))) + header + content


def described(body: Any, arrays: Any) -> bytes:
    return json.dumps({"body": body, "arrays": arrays}).encode()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Until the other end closes, or resets what it has not read."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


STRANGERS = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n",
    "no token": raw(described({"seats": []}, [])),
    "a wrong token": raw(described({"token": "0" * 32, "name": "x"}, [])),
    "no JSON": raw(b"\xff\xfe{"),
    "an empty frame": raw(b""),
    "a frame of a gigabyte and more": raw(b"", lengths=(1, wire.MAX_BYTES)),
}


@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_hung_up_on_and_heard_by_nobody(sent: bytes) -> None:
    async def exchange(ends: Ends) -> None:
        reader, writer = await asyncio.open_connection(ends.address.host, ends.address.port)
        writer.write(sent)
        assert await rest_of(reader) == b"", "the server closes the connection"
        writer.close()
        assert ends.heard.empty()
        friend = await ends.connect()
        friend.send({"still": "served"})
        assert (await ends.heard.get())[1] == {"still": "served"}

    with_ends(exchange)


MISFITS = {
    "too few bytes": ([["<f4", [3]]], b"12345678"),
    "too many bytes": ([["<f4", [1]]], b"12345678"),
    "objects": ([["|O", [1]]], b"12345678"),
    "a negative shape": ([["|u1", [-1]]], b"1"),
}


@pytest.mark.parametrize(("arrays", "content"), MISFITS.values(), ids=MISFITS)
def test_arrays_that_do_not_fit_their_frame_end_the_connection(arrays: Any, content: bytes) -> None:
    async def exchange(ends: Ends) -> None:
        reader, writer = await asyncio.open_connection(ends.address.host, ends.address.port)
        writer.write(raw(described({"token": ends.address.token, "name": "x"}, [])))
        writer.write(raw(described({}, arrays), content))
        assert await rest_of(reader) == b""
        writer.close()
        assert ends.heard.empty()

    with_ends(exchange)


def test_both_ends_are_told_when_a_connection_ends() -> None:
    async def exchange(ends: Ends) -> None:
        connection = await ends.connect()
        connection.send({"n": 1})
        sender, _, _ = await ends.heard.get()
        sender.close()
        assert {await ends.closed.get(), await ends.closed.get()} == {"server's", "client's"}
        assert not connection.is_open and not sender.is_open
        connection.send({"n": 2})  # into the void, without an error
        with pytest.raises(OSError):
            await wire.connect(wire.Address("127.0.0.1", 1, ""), "x", lambda *_: None, lambda _: None)

    with_ends(exchange)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(wire.Address("host", 1, "secret"))
