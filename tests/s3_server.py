"""A server that speaks S3's protocol, as a process of its own, behind a door that can be shut: an outage."""

import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

WAIT_S = 60.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Door:
    """A port that leads to another one, unless it is shut: then nobody listens, and what was open is reset."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port = _free_port()
        self.open()

    def open(self) -> None:
        """Let connections through."""
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections, and break those that are open."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            threading.Thread(target=self._carry, args=(here, there), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with self._lock:
            self._sockets |= {here, there}
        other = {here: there, there: here}
        with suppress(OSError), here, there:
            while True:
                for source in select.select(list(other), [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    other[source].sendall(data)
        with self._lock:
            self._sockets -= {here, there}


class S3Server:
    """What the tests need of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.door = Door(port)
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.door.port}"}

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens."""
        self.door.shut()
        try:
            yield
        finally:
            self.door.open()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It takes connections and does not answer."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running(log: Path, *, checks_credentials: bool = False) -> Iterator[S3Server]:
    """Start a server with nothing in it; its data goes with it."""
    port = _free_port()
    # moto checks who asks only after so many requests that nobody checked
    checks = {"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if checks_credentials else {}
    command = [shutil.which("moto_server", path=str(Path(sys.executable).parent)) or "moto_server", "-p", str(port)]
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=os.environ | CREDENTIALS | checks)
    try:
        deadline = time.monotonic() + WAIT_S
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        _forget_connections()
        yield S3Server(process, port)
    finally:
        _forget_connections()
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def _forget_connections() -> None:
    """fsspec keeps file systems by their arguments, and the address is none of them: it comes from the environment."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _free_port() -> int:
    """Below those that the kernel gives to connections: while a door is shut, nobody else gets its port."""
    for _ in range(100):
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
