"""A door in front of a program: its address stays while the program behind it comes and goes, and it can be slammed."""

import contextlib
import socket
import threading


class Door:
    """Forwards connections to wherever `target` (host:port) says at that moment."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.slam_after: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No connection comes in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            try:
                host, port = self.target.split(":")
                inner = socket.create_connection((host, int(port)))
            except OSError:
                outer.close()
                continue
            limit, self.slam_after = self.slam_after, None
            threading.Thread(target=self._carry, args=(outer, inner, limit), daemon=True).start()
            threading.Thread(target=self._carry, args=(inner, outer, None), daemon=True).start()

    @staticmethod
    def _carry(here: socket.socket, there: socket.socket, limit: int | None) -> None:
        """Carries bytes one way, at most as many as the limit says; then both ends are closed."""
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                if limit is not None and limit < len(data):
                    break
                limit = limit - len(data) if limit is not None else None
                there.sendall(data)
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
