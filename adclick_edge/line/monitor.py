"""Where watchers read a running daemon: its monitor socket, or its /status page."""

import http.client
import time
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec
import zmq

from adclick_edge.errors import LineError
from adclick_edge.line.protocol import VerdictMessage
from adclick_edge.line.tally import LineTally

__all__ = ["TALLY_TOPIC", "VERDICT_TOPIC", "CameraVerdict", "HttpSource", "MonitorSource", "Source"]

TALLY_TOPIC: Final = b"tally"
VERDICT_TOPIC: Final = b"verdict."
MAX_MESSAGE_BYTES: Final = 4 << 20
WAITING: Final = 2000
HTTP_EVERY_S: Final = 0.5
HTTP_TIMEOUT_S: Final = 2.0


class CameraVerdict(msgspec.Struct, frozen=True):
    camera: str
    message: VerdictMessage


class Source(Protocol):
    """Never raises because the daemon is gone: it goes on trying."""

    where: str
    trouble: str | None
    """Why nothing comes, where that is known."""

    def poll(self, timeout_s: float) -> list[LineTally | CameraVerdict]:
        """What came, after at most ``timeout_s``."""

    def close(self) -> None: ...


class MonitorSource:
    """Subscribes to the daemon's PUB socket. A watcher that is slow loses messages; the line never waits for it."""

    def __init__(self, endpoint: str) -> None:
        self.where = endpoint
        self.trouble: str | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, WAITING),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 1000),
        ):
            self._socket.setsockopt(option, value)
        for topic in (TALLY_TOPIC, VERDICT_TOPIC):
            self._socket.setsockopt(zmq.SUBSCRIBE, topic)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LineError(f"monitor {endpoint}: {error.strerror}; expected ipc://PATH or tcp://HOST:PORT") from error
        self._tallies = msgspec.json.Decoder(LineTally)
        self._verdicts = msgspec.json.Decoder(VerdictMessage)

    def poll(self, timeout_s: float) -> list[LineTally | CameraVerdict]:
        found: list[LineTally | CameraVerdict] = []
        if not self._socket.poll(int(timeout_s * 1000)):
            return found
        while len(found) < WAITING:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            item = self._read(parts)
            if item is not None:
                found.append(item)
        return found

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def _read(self, parts: list[bytes]) -> LineTally | CameraVerdict | None:
        try:
            topic, data = parts
            if topic == TALLY_TOPIC:
                self.trouble = None
                return self._tallies.decode(data)
            return CameraVerdict(topic.removeprefix(VERDICT_TOPIC).decode(), self._verdicts.decode(data))
        except ValueError as error:  # msgspec's errors are ValueErrors too
            self.trouble = f"a message that is none of this version: {error}"[:300]
            return None


class HttpSource:
    """Asks /status twice a second; verdicts are not seen this way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or port == 0:
            raise LineError(f"{url!r} is no address of a daemon; expected http://HOST:PORT")
        self.where = f"http://{parts.netloc}"
        self.trouble: str | None = None
        self._host, self._port = parts.hostname, port or 80
        self._tallies = msgspec.json.Decoder(LineTally)
        self._next_s = 0.0

    def poll(self, timeout_s: float) -> list[LineTally | CameraVerdict]:
        wait_s = self._next_s - time.monotonic()
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return []
        time.sleep(max(wait_s, 0.0))
        self._next_s = time.monotonic() + HTTP_EVERY_S
        connection = http.client.HTTPConnection(self._host, self._port, timeout=HTTP_TIMEOUT_S)
        try:
            connection.request("GET", "/status", headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read(MAX_MESSAGE_BYTES)
            if answer.status != 200:
                raise ValueError(f"HTTP {answer.status}")
            tally = self._tallies.decode(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.trouble = str(error)[:300]
            return []
        finally:
            connection.close()
        self.trouble = None
        return [tally]

    def close(self) -> None:
        """Nothing stays open between questions."""
