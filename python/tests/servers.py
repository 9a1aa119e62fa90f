"""Real servers on free ports of the loopback, each started and ended by whoever enters it."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE = 30.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str) -> str:
    """The path of a program, also where Debian keeps PostgreSQL's."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )
    if found is None:
        raise RuntimeError(f"{name} is not installed: apt-get install postgresql redis-server")
    return found


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen")


def _end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    process.send_signal(by)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server; gives its URL."""
    folder = tempfile.mkdtemp(prefix="kailash-python-postgres-")
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        # The server refuses to run as root.
        shutil.chown(folder, "postgres", "postgres")
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data, port, quiet = f"{folder}/data", free_port(), subprocess.DEVNULL
    settings: dict[str, Any] = {"cwd": folder, "stdout": quiet, "stderr": quiet, **account}
    try:
        initdb = [program("initdb"), "-D", data, "-U", "kailash", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, check=True, **settings)
        server = [program("postgres"), "-D", data, "-p", str(port), "-k", folder, "-F"]
        process = subprocess.Popen([*server, "-h", "127.0.0.1"], **settings)
        try:
            _await_port(port, process)
            url = f"postgresql://kailash@127.0.0.1:{port}/postgres"
            psql = [program("psql"), url, "-c", "SELECT 1"]
            end = time.monotonic() + _PATIENCE
            while subprocess.run(psql, stdout=quiet, stderr=quiet).returncode:
                assert time.monotonic() < end, "the server never became ready"
                time.sleep(0.05)
            yield url
        finally:
            _end(process, signal.SIGINT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Redis:
    """A Redis server that can be stopped in its tracks and go on."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._process = process

    @property
    def config(self) -> dict[str, object]:
        """What a check needs to know."""
        return {"host": "127.0.0.1", "port": self.port}

    @contextmanager
    def silent(self) -> Iterator[None]:
        """For a block, it accepts connections and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis() -> Iterator[Redis]:
    """A Redis server."""
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([program("redis-server"), *arguments], stdout=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield Redis(port, process)
    finally:
        _end(process, signal.SIGTERM)


class _Answers(http.server.BaseHTTPRequestHandler):
    """/status/N answers N; anything else answers 200; each with the request as JSON."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        parts = self.path.split("/")
        status = int(parts[2]) if parts[1] == "status" else 200
        sent = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        body = f'{{"method": "{self.command}", "path": "{self.path}", "sent": {len(sent)}}}'
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http_service() -> Iterator[str]:
    """An HTTP service; gives its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_PATIENCE)


def run_python(code: str, *arguments: str, limit: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit)
