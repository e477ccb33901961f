"""A page in headless Chromium, spoken to over a pipe in the DevTools protocol.

Nothing but the browser is needed: no driver, no socket, no package.
"""

import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 120  # seconds, for any one answer of a browser on a busy machine


class Page:
    """The one page of a browser.

    Attributes:
      complaints: what the page threw, or reported as an error.
      requests: addresses of all that the page asked for.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._numbers = itertools.count(1)
        self._received = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Returns when the page and all that it refers to are there."""
        self._loaded = False
        self.command("Page.navigate", url=address)
        while not self._loaded:
            self._handle(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise what it becomes."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size in CSS pixels, and which of its two colour schemes the page is asked for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, with its Windows virtual code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._handle(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._received:
            left = deadline - time.monotonic()
            assert left > 0, "no answer from Chromium"
            if select.select([self._read], [], [], left)[0]:
                received = os.read(self._read, 1 << 20)
                assert received, "Chromium has ended"
                self._received += received
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def _handle(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.complaints.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """A page of a fresh browser, which ends with the context."""
    assert CHROMIUM, "there is no Chromium"
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    # Chromium reads its file descriptor 3 and writes its 4; the shell puts the pipes there.
    shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",  # which a container does not give
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={pathlib.Path(profile)}",
            "--remote-debugging-pipe",
        ]
        browser = subprocess.Popen(
            ["/bin/bash", "-c", shell, CHROMIUM, *options],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(write, read)
        finally:
            os.close(write)
            os.close(read)
            browser.terminate()
            browser.wait(PATIENCE)
