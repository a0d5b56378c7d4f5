import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adclick_edge.commands import keys as command
from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.curve import (
    AllowList,
    Authenticator,
    CameraKeys,
    ServerKeys,
    allow,
    allowed,
    connect_with_curve,
    new_keys,
    public_key_in,
    revoke,
    serve_with_curve,
)

PATIENCE_MS = 10_000
REFUSED_MS = 300
"""How long a client that should be refused may try."""

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of a daemon."""
    new_keys(tmp_path / "keys", "server")
    return tmp_path / "keys"


@pytest.fixture
def camera_folder(folder: Path, tmp_path: Path) -> Path:
    """Keys of cam1, which is allowed."""
    made = tmp_path / "camera"
    allow(folder, "cam1", new_keys(made, "cam1"))
    (made / "server.public").write_text((folder / "server.public").read_text())
    return made


@pytest.fixture
def context() -> Iterator[Context]:
    before = set(threading.enumerate())
    made: Context = zmq.Context()
    yield made
    made.term()
    assert set(threading.enumerate()) <= before


class Server:
    """A ROUTER behind a gate."""

    def __init__(self, context: Context, folder: Path, gate: Authenticator | None) -> None:
        self.gate = gate
        self.router = context.socket(zmq.ROUTER)
        self.router.linger = 0
        serve_with_curve(self.router, folder)
        self.router.bind("tcp://127.0.0.1:*")
        self.endpoint = self.router.last_endpoint.decode()

    def hears(self, client: "zmq.Socket[bytes]", timeout_ms: int) -> str | None:
        """User-Id of a message of the client; None if none came."""
        client.send(b"hello")
        if not self.router.poll(timeout_ms):
            return None
        _route, part = self.router.recv_multipart(copy=False)
        assert part.bytes == b"hello"
        return str(part.get("User-Id"))


@pytest.fixture
def server(context: Context, folder: Path) -> Iterator[Server]:
    with Authenticator(context, folder) as gate:
        made = Server(context, folder, gate)
        yield made
        made.router.close()


@pytest.fixture
def client(context: Context, server: Server) -> Iterator[Callable[..., "zmq.Socket[bytes]"]]:
    made: list[zmq.Socket[bytes]] = []

    def connect(keys: CameraKeys | Path | None) -> "zmq.Socket[bytes]":
        socket = context.socket(zmq.DEALER)
        made.append(socket)
        socket.linger = 0
        if keys is not None:
            connect_with_curve(socket, keys)
        socket.connect(server.endpoint)
        return socket

    yield connect
    for socket in made:
        socket.close()


def refusals(gate: Authenticator, why: str) -> int:
    """Waits for the first."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while not gate.refused().get(why) and time.monotonic() < until:
        time.sleep(0.005)
    return gate.refused().get(why, 0)


def gate_of(server: Server) -> Authenticator:
    assert server.gate is not None
    return server.gate


Client = Callable[..., "zmq.Socket[bytes]"]


def test_a_camera_on_the_list_is_let_in_under_its_name(server: Server, client: Client, camera_folder: Path) -> None:
    socket = client(camera_folder)
    assert server.hears(socket, PATIENCE_MS) == "cam1"
    assert server.hears(socket, PATIENCE_MS) == "cam1"
    assert (gate_of(server).accepted(), gate_of(server).refused()) == (1, {})


def test_a_key_that_is_not_on_the_list_is_refused(
    server: Server, client: Client, camera_folder: Path, tmp_path: Path
) -> None:
    new_keys(tmp_path / "stranger", "cam1")
    (tmp_path / "stranger" / "server.public").write_text((camera_folder / "server.public").read_text())
    socket = client(tmp_path / "stranger")
    socket.send(b"hello")
    assert refusals(gate_of(server), "unknown_key") >= 1
    assert server.router.poll(0) == 0
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam1"


def test_a_camera_that_expects_another_daemon_sends_nothing(
    server: Server, client: Client, camera_folder: Path, tmp_path: Path
) -> None:
    other = new_keys(tmp_path / "other", "server")
    keys = CameraKeys.load(camera_folder)
    assert server.hears(client(CameraKeys(keys.public, other, keys.secret)), REFUSED_MS) is None
    assert gate_of(server).accepted() == 0


def test_a_client_without_keys_is_refused(server: Server, client: Client, camera_folder: Path) -> None:
    assert server.hears(client(None), REFUSED_MS) is None
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam1"


def test_user_and_password_are_refused(server: Server, context: Context) -> None:
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.plain_username, socket.plain_password = b"cam1", b"secret"
        socket.connect(server.endpoint)
        assert server.hears(socket, REFUSED_MS) is None


def test_without_a_gate_nobody_is_let_in(context: Context, folder: Path, camera_folder: Path) -> None:
    """ZeroMQ's own default lets in everybody who knows the daemon's public key."""
    server = Server(context, folder, None)
    with context.socket(zmq.DEALER) as socket, server.router:
        socket.linger = 0
        connect_with_curve(socket, camera_folder)
        socket.connect(server.endpoint)
        assert server.hears(socket, REFUSED_MS) is None


def test_changes_of_the_list_hold_from_the_next_connection_on(
    server: Server, client: Client, folder: Path, camera_folder: Path
) -> None:
    standing = client(camera_folder)
    assert server.hears(standing, PATIENCE_MS) == "cam1"
    assert revoke(folder, "cam1") == 1
    assert server.hears(standing, PATIENCE_MS) == "cam1"
    client(camera_folder)
    assert refusals(gate_of(server), "unknown_key") >= 1
    allow(folder, "cam2", CameraKeys.load(camera_folder).public)
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam2"


def test_a_list_that_became_malformed_is_not_taken_up(
    server: Server, client: Client, folder: Path, camera_folder: Path
) -> None:
    text = (folder / "cameras.allow").read_text()
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam1"
    assert gate_of(server).problem() is None
    (folder / "cameras.allow").write_text(text + "cam2 nonsense\n")
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam1"
    assert "cameras.allow: line 3: no key" in str(gate_of(server).problem())
    (folder / "cameras.allow").write_text(text.replace("cam1", "cam3"))
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam3"
    assert gate_of(server).problem() is None
    (folder / "cameras.allow").unlink()
    client(camera_folder)
    assert refusals(gate_of(server), "unknown_key") >= 1


def test_a_list_that_fails_refuses_and_goes_on(
    server: Server, client: Client, camera_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_self: AllowList, _key: bytes) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(AllowList, "camera_of", fails)
        client(camera_folder)
        assert refusals(gate_of(server), "failed") >= 1
    assert server.hears(client(camera_folder), PATIENCE_MS) == "cam1"


def test_one_gate_per_context(server: Server, context: Context, folder: Path) -> None:
    with pytest.raises(LineError, match="a ZeroMQ context takes one authenticator"):
        Authenticator(context, folder).start()


def test_a_gate_can_be_stopped_twice_and_started_again(context: Context, folder: Path) -> None:
    gate = Authenticator(context, folder)
    gate.stop()
    for _ in range(2):
        gate.start()
        gate.stop()
        gate.stop()


PARTS = st.lists(st.sampled_from([b"", b"1.0", b"2.0", b"1", b"CURVE", b"NULL", b"k" * 32, b"x" * 300]), max_size=12)


@given(requests=st.lists(PARTS, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_malformed_requests_do_not_stop_the_gate(requests: list[list[bytes]], context: Context, folder: Path) -> None:
    with Authenticator(context, folder) as gate, context.socket(zmq.DEALER) as asker:
        asker.linger = 0
        asker.connect("inproc://zeromq.zap.01")
        for parts in requests:
            if parts:
                asker.send_multipart(parts)
        asker.send_multipart([b"", b"1.0", b"id", b"adclick", b"127.0.0.1", b"", b"CURVE", b"k" * 32])
        while True:
            assert asker.poll(PATIENCE_MS)
            empty, version, request, status, *rest = asker.recv_multipart()
            assert (empty, version, len(rest)) == (b"", b"1.0", 3)
            assert status in (b"400", b"500")
            if request == b"id":
                break
        assert status == b"400"
        assert sum(gate.refused().values()) == 1 + sum(bool(parts) for parts in requests)
        assert gate.accepted() == 0


def test_key_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "keys"
    public = new_keys(folder, "server")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "server.secret").stat().st_mode) == 0o600
    assert ServerKeys.load(folder).public == public == public_key_in(folder / "server.public")
    assert ServerKeys.load(folder).secret not in repr(ServerKeys.load(folder))
    for missing in ("server.public", "server.secret"):
        with pytest.raises(LineError, match="is there already"):
            new_keys(folder, "server")
        (folder / missing).unlink()
    with pytest.raises(LineError, match="no such key; make one: `adclick keys new "):
        ServerKeys.load(folder)
    assert new_keys(folder, "server") != public


def test_public_keys_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = zmq.curve_keypair()
    pairs = iter([(b"-" + good[0][1:], good[1]), (b"0" + good[0][1:], good[1])])
    monkeypatch.setattr(zmq, "curve_keypair", lambda: next(pairs))
    assert new_keys(tmp_path, "cam1") == "0" + good[0][1:].decode()


def test_a_pair_without_its_public_file_still_serves(folder: Path) -> None:
    public = public_key_in(folder / "server.public")
    (folder / "server.public").unlink()
    assert ServerKeys.load(folder).public == public


def test_nothing_is_left_of_a_pair_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adclick_edge.line.curve.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        new_keys(tmp_path, "server")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secrets_that_others_may_read_are_refused(folder: Path, mode: int) -> None:
    (folder / "server.secret").chmod(mode)
    with pytest.raises(LineError, match=rf"others may use it \(mode 0{mode:o}\): `chmod 600 "):
        ServerKeys.load(folder)


def test_folders_that_others_may_write_to_are_refused(folder: Path, camera_folder: Path) -> None:
    for path in (folder, camera_folder):
        path.chmod(0o775)
    with pytest.raises(LineError, match="chmod 700"):
        ServerKeys.load(folder)
    with pytest.raises(LineError, match="chmod 700"):
        CameraKeys.load(camera_folder)
    with pytest.raises(LineError, match="chmod 700"):
        new_keys(folder, "cam9")


@pytest.mark.parametrize("text", ["", "short", "%" * 40, "\xe4" * 40, "a" * 41, "#" * 40])
def test_key_files_that_hold_no_key(folder: Path, text: str) -> None:
    (folder / "server.secret").write_text(text)
    with pytest.raises(LineError, match="no key; copy all 40 characters"):
        ServerKeys.load(folder)
    (folder / "server.public").write_text(text)
    with pytest.raises(LineError, match="no key; copy all 40 characters"):
        public_key_in(folder / "server.public")


def test_keys_of_a_camera(camera_folder: Path, tmp_path: Path) -> None:
    keys = CameraKeys.load(camera_folder)
    assert keys == CameraKeys.load(camera_folder, "cam1")
    assert keys.secret not in repr(keys)
    new_keys(camera_folder, "cam2")
    with pytest.raises(LineError, match="keys of cam1, cam2; say which camera this is"):
        CameraKeys.load(camera_folder)
    assert CameraKeys.load(camera_folder, "cam2").public != keys.public
    with pytest.raises(LineError, match=r"cam3.secret: no such key; make one"):
        CameraKeys.load(camera_folder, "cam3")
    with pytest.raises(LineError, match=r"CAMERA.secret: no such key"):
        CameraKeys.load(tmp_path / "nothing")
    (camera_folder / "server.public").unlink()
    with pytest.raises(LineError, match=r"server.public: no such file; copy it from the daemon"):
        CameraKeys.load(camera_folder, "cam1")


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "x" * 65, "ü"])
def test_names_that_are_no_cameras(folder: Path, name: str) -> None:
    with pytest.raises(LineError, match="no camera's name"):
        new_keys(folder, name)
    with pytest.raises(LineError, match="no camera's name"):
        allow(folder, name, public_key_in(folder / "server.public"))


def test_the_list_of_keys(folder: Path) -> None:
    assert allowed(folder) == {}
    one, two, three = (zmq.curve_keypair()[0].decode() for _ in range(3))
    allow(folder, "cam1", one)
    allow(folder, "cam1", two)
    allow(folder, "cam1", two)
    allow(folder, "cam2", three)
    assert allowed(folder) == {one: "cam1", two: "cam1", three: "cam2"}
    with pytest.raises(LineError, match="this key is cam1's already; revoke it there first"):
        allow(folder, "cam2", one)
    with pytest.raises(LineError, match="nonsense: no key"):
        allow(folder, "cam2", "nonsense")
    assert revoke(folder, "cam1", one) == 1
    assert allowed(folder) == {two: "cam1", three: "cam2"}
    for camera, key in (("cam3", None), ("cam1", one), ("cam1", three)):
        with pytest.raises(LineError, match="is allowed; cameras with keys: cam1, cam2"):
            revoke(folder, camera, key)
    allow(folder, "cam1", one)
    assert revoke(folder, "cam1") == 2
    assert revoke(folder, "cam2") == 1
    assert allowed(folder) == {}
    with pytest.raises(LineError, match="cameras with keys: none"):
        revoke(folder, "cam2")
    with pytest.raises(LineError, match=r"`adclick keys new .*` makes a folder of keys"):
        allow(folder / "nothing", "cam1", one)


def test_the_list_may_be_written_by_hand(folder: Path) -> None:
    key = public_key_in(folder / "server.public")
    path = folder / "cameras.allow"
    path.write_text(f"\n# a comment\n  cam1\t{key}  \n")
    assert allowed(folder) == {key: "cam1"}
    for text, said in [
        (f"cam1 {key} twice\n", "line 1: must be a camera and its public key"),
        (f"\ncam/1 {key}\n", "cam/1"),
        (f"cam1 {key[:-1]}\n", "line 1: no key"),
        (f"cam1 {key}\ncam2 {key}\n", "line 2: this key is cam1's already"),
        ("#" * (1 << 21), "larger than"),
    ]:
        path.write_text(text)
        with pytest.raises(LineError, match=said):
            allowed(folder)
    path.write_bytes(b"\xff\x00 x\n")
    with pytest.raises(LineError, match="no camera's name"):
        allowed(folder)


def test_two_who_change_the_list_at_once_lose_nothing(folder: Path) -> None:
    keys = [zmq.curve_keypair()[0].decode() for _ in range(12)]
    threads = [threading.Thread(target=allow, args=(folder, f"cam{i}", key)) for i, key in enumerate(keys)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allowed(folder) == {key: f"cam{i}" for i, key in enumerate(keys)}


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon, camera = tmp_path / "daemon", tmp_path / "camera"
    command.run_new(daemon, None, json_output=False)
    said = capsys.readouterr().out
    assert said.startswith(public_key_in(daemon / "server.public"))
    assert "copy it to each camera" in said
    command.run_new(camera, "cam1", json_output=True)
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["public_key"]) == ("cam1", public_key_in(camera / "cam1.public"))
    command.run_allow(daemon, "cam1", str(camera / "cam1.public"))
    command.run_allow(daemon, "cam1", made["public_key"])
    capsys.readouterr()
    command.run_list(daemon, json_output=True)
    listed = json.loads(capsys.readouterr().out)
    assert listed["daemon"] == public_key_in(daemon / "server.public")
    assert listed["allowed"] == [{"camera": "cam1", "public_key": made["public_key"]}]
    command.run_list(daemon, json_output=False)
    assert f"cam1 {made['public_key']}" in capsys.readouterr().out
    command.run_revoke(daemon, "cam1", None)
    assert "1 key of cam1 revoked" in capsys.readouterr().out
    assert allowed(daemon) == {}


def test_verbs_called_wrongly(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a camera cannot be called 'server'"):
        command.run_new(tmp_path, "server", json_output=False)
    new_keys(tmp_path / "camera", "cam1")
    with pytest.raises(LineError, match=r"is a secret key; name the .public file"):
        command.run_allow(tmp_path, "cam1", str(tmp_path / "camera" / "cam1.secret"))
    with pytest.raises(UsageError, match="no such file"):
        command.run_allow(tmp_path, "cam1", str(tmp_path / "camera" / "cam2.public"))
    with pytest.raises(LineError, match="no key"):
        command.run_allow(tmp_path, "cam1", "x" * 5000)
    assert sorted(os.listdir(tmp_path)) == ["camera"]
