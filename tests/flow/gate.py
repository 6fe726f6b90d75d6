"""A server that goes away and comes back, for flow tests."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """A TCP forwarder to the server that can be shut: the server is then away, and comes back without a restart."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._lock = threading.Lock()  # no connection comes up while the gate is being shut
        self._connections: list[socket.socket] = []
        self._trap: bytes | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.open()

    def open(self) -> None:
        """Listen, on the same port each time."""
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut_at(self, words: bytes) -> None:
        """Shut it when a request with these words comes, which is not passed on."""
        self._trap = words

    @property
    def is_open(self) -> bool:
        return self._listener is not None

    def shut(self) -> None:
        """Cut every connection and take no more; shut already, it stays so."""
        with self._lock:
            if self._listener is None:
                return
            # Shutting down wakes the threads that wait for these; closing alone would not.
            for one in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._listener = None
            self._connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if listener is not self._listener:
                    near.close()
                    return
                far = socket.create_connection(self._target)
                self._connections += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._trap and self._trap in data:
                    self._trap = None
                    self.shut()
                sink.sendall(data)
        sink.close()
