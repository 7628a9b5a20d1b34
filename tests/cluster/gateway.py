"""A way to the API server that can be cut: bytes are passed on, held back, or refused."""

import selectors
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

PASS, STALL, REFUSE = "pass", "stall", "refuse"


class Gateway:
    """Listens on this machine; the API server's certificate must name 127.0.0.1 or localhost."""

    def __init__(self, server: str) -> None:
        where = urlsplit(server)
        self._target = (where.hostname or "", where.port or 443)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._mode = threading.Condition()
        self.mode = PASS
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """STALL: a server that hangs. REFUSE: one that is gone; open connections break."""
        with self._mode:
            self.mode = mode
            self._mode.notify_all()
        if mode == REFUSE:
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.set(REFUSE)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.mode == REFUSE:
                    client.close()
                    continue
                threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            self._open |= {client, server}
            try:
                self._pass_on(client, server)
            finally:
                self._open -= {client, server}

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(client, selectors.EVENT_READ, server)
            waiting.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in waiting.select():
                    with self._mode:
                        self._mode.wait_for(lambda: self.mode != STALL)
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data or self.mode == REFUSE:
                        return
                    key.data.sendall(data)
