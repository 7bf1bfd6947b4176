"""An HTTP server for tests that serves a folder and misbehaves when told to."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer:
    """Serves a folder on loopback.

    Attributes:
        url: address of the folder.
        faults: file name -> what happens at its next requests, in order; then it is served as it should. A number is
            an HTTP status; "truncate" sends half, "drop" closes without an answer, "hang" is silent, "crawl" sends a
            byte now and then.
        always: file name -> the same for all its requests.
        served: the names that were asked for, in order.
    """

    def __init__(self, folder: Path):
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.always: dict[str, int | str] = {}
        self.served: list[str] = []
        self._stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("?")[0].lstrip("/")
                outer.served.append(name)
                fault = outer.faults[name].pop(0) if outer.faults[name] else outer.always.get(name)
                path = folder / name
                if isinstance(fault, int) or not path.is_file():
                    self.send_error(fault if isinstance(fault, int) else 404)
                    return
                if fault == "drop":
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fault == "hang":
                    outer._stopping.wait(30)
                elif fault == "crawl":
                    for start in range(len(content)):
                        self.wfile.write(content[start : start + 1])
                        if outer._stopping.wait(0.05):
                            break
                else:
                    self.wfile.write(content[: len(content) // 2] if fault == "truncate" else content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    """A server that is there as long as the context."""
    server = ShardServer(folder)
    try:
        yield server
    finally:
        server.close()


def wait_for(condition, seconds: float = 10.0) -> None:
    """Return as soon as the condition holds; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
