"""What a stranger's machine brings must not come between our own programs: proxies, files of the same name, ports that are taken."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from attune import config, live_line, telemetry, up
from attune.config import Config, ServeSection, TermSection
from attune.errors import ConfigError
from attune.progress import Progress
from attune.simulate.client import Line
from attune.terms import Terms
from learner.top_up import TopUp
from serve.access import is_local
from tests.suites.events import interaction

STATUS = {"policy_version": 0, "reward_version": 0, "votes": {"received": 0, "stored": 0, "learned": 0}, "versions": []}


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say(STATUS)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say({"id": "fb-1"})

    def _say(self, what: object) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Yield the configuration of a server on this machine, where everything else is to be asked through proxies that are away."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Config(serve=ServeSection(port=server.server_port))
        server.shutdown()
        thread.join()


def test_our_own_server_is_asked_without_the_proxy(proxied: Config, tmp_path: Path) -> None:
    assert live_line.ask(proxied.base_url, "sk-attune-x") == "policy 0 (the bare model), reward 0, no votes yet"
    up._wait_ready(proxied, up.Supervisor({}, tmp_path, tmp_path / "children.json", {}, str), Progress(sys.stderr))
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    asked = TopUp(proxied.model_copy(update={"home": tmp_path}))
    while (made := asked.ask([interaction("i1")])) is None:
        pass
    assert made == 1


def test_simulated_people_go_there_directly_too(proxied: Config) -> None:
    async def met() -> int:
        line = Line(proxied.base_url, "sk-attune-x")
        reply = await line._http.get("/v1/attune/status")
        chat = await line._openai._client.get(proxied.base_url)
        await line._http.aclose()
        await line._openai.close()
        return min(reply.status_code, chat.status_code)

    assert asyncio.run(met()) == 200


def test_a_server_elsewhere_is_asked_as_the_environment_says(proxied: Config, tmp_path: Path) -> None:
    for name in ("ALL_PROXY", "all_proxy"):
        os.environ.pop(name)  # for a SOCKS proxy httpx wants a library that is not here
    (tmp_path / "api-key").write_text("sk-attune-x\n")
    there = Config(home=tmp_path, learner=config.LearnerSection(serve_url="http://attune.example:8000"))
    with pytest.raises(httpx.ConnectError):  # at the proxy, which is away
        TopUp(there)._http.get("/readyz")


def request(*headers: tuple[bytes, bytes], local_sessions: bool = True) -> Request:
    state = type("State", (), {"config": Config(serve=ServeSection(local_sessions=local_sessions))})
    app = type("App", (), {"state": state})
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8000),
    }
    return Request(scope | {"scheme": "http", "app": app, "headers": [(b"host", b"127.0.0.1:8000"), *headers]})


def test_who_comes_through_a_reverse_proxy_is_not_on_this_machine() -> None:
    assert is_local(request())
    for name in (b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"):
        assert not is_local(request((name, b"203.0.113.7")))
    assert not is_local(request(local_sessions=False))  # for a proxy that adds nothing


def test_an_entry_point_may_lie_where_attune_is_started_but_stands_in_for_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "wishes_of_ours.py").write_text("def wish(question, answer):\n    return len(answer) / 100\n")
    (tmp_path / "fractions.py").write_text("raise ImportError('a stranger')")
    loaded = Terms.load([TermSection(name="ours", kind="python", entry_point="wishes_of_ours:wish")])
    assert float(loaded.values("?", ["x" * 50])["ours"][0]) == 0.5
    assert sys.path[-1] == str(tmp_path)


def test_a_port_that_is_taken_is_named_with_its_setting() -> None:
    telemetry.expose(0, "learner")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"^learner\.metrics_port: cannot listen on \d+ \(Address already in use\): choose another"):
            telemetry.expose(taken.getsockname()[1], "learner")


def test_a_broker_that_is_away_is_noticed_at_the_start() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        fault = up._unreachable(f"127.0.0.1:{port}, 127.0.0.1:99999")
        assert fault is not None
        assert f"127.0.0.1:{port}: [Errno 111] Connection refused; 127.0.0.1:99999: " in fault
        mute.listen()
        assert up._unreachable(f"127.0.0.1:99999,127.0.0.1:{port}") is None


def test_a_learner_whose_store_is_away_says_so_in_its_last_line(tmp_path: Path) -> None:
    given = {"ATTUNE_HOME": str(tmp_path), "ATTUNE_STORE__URL": "postgresql+psycopg://nobody@127.0.0.1:9/none"}
    done = subprocess.run([sys.executable, "-m", "learner"], env=os.environ | given, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == up.SAID_EXIT
    assert done.stderr.splitlines()[-1].startswith("attune learner: ")
