"""A mosquitto that can be stopped, killed and started again, a subscriber that counts, and a slow line between."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 15.0
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Broker:
    """Keeps its subscriptions and queues on the disk after every change, so that a kill loses no subscriber."""

    def __init__(self, folder: Path, settings: str = "allow_anonymous true\n") -> None:
        self.port, self._config = free_port(), folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""  # else it drops its rights, and with them the folder
        keeping = f"persistence true\npersistence_location {folder}/\nautosave_on_changes true\nautosave_interval 1\n"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{user}{keeping}{settings}")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [str(MOSQUITTO), "-v", "-c", str(self._config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith("running"):
                break
        else:
            raise AssertionError("mosquitto did not start")
        # Its log must be read, else it blocks when the pipe is full.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()
            self._process = None


class Subscriber:
    """Hears all of fusar-edge/#, at least once, also what came while it or the broker was away."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, bytes, dict[str, str]]] = []
        """Topic, payload, user properties."""
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="subscriber", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.on_connect = lambda client, *_: client.subscribe("fusar-edge/#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        staying = Properties(PacketTypes.CONNECT)
        staying.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=staying)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def _on_message(self, client: Any, _: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.got.append((message.topic, message.payload, dict(message.properties.UserProperty)))
            self._changed.notify_all()

    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.got]

    def wait_for(self, payloads: set[bytes]) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: payloads <= set(self.payloads()), PATIENCE_S)
        assert done, payloads - set(self.payloads())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Line:
    """A line to the broker whose way back is slow, or silent after so many bytes."""

    def __init__(self, port: int, *, pause_s: float = 0.0, silent_after: int | None = None) -> None:
        self._broker, self._pause_s, self._silent_after = port, pause_s, silent_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._broker))
                self._sockets += [near, far]
                threading.Thread(target=self._carry, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, True), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_back: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4 if is_back else 65536):
                carried += len(data)
                if is_back and self._silent_after is not None and carried > self._silent_after:
                    self.cut()
                    return
                if is_back and self._pause_s:
                    self._ended.wait(self._pause_s)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End the connections that there are."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ended.set()
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._sockets):
            sock.close()
