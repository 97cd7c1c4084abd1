"""A headless Chromium, spoken to over pipes in its own protocol, so that a test needs no driver and no port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab. `complaints`: what its console said of errors and warnings, and what a page's policy refused."""

    def __init__(self, reading: Any, writing: Any) -> None:
        self._reading, self._writing, self._number, self._session = reading, writing, 0, ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._writing.write(
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        self._writing.flush()
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._reading.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message = json.loads(text)
        name, said = message.get("method"), message.get("params", {})
        if name == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry'].get('url')}: {said['entry']['text']}")
        elif name == "Runtime.exceptionThrown" or (
            name == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning")
        ):
            self.complaints.append(json.dumps(said))
        return message

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str, *, width: int, dark: bool = False) -> None:
        """Load a page in a window of so many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip
        self.call("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser of its own, which goes away with everything that it kept."""
    assert PROGRAM is not None
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-") as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-background-networking", "about:blank"]  # fmt: skip
        moved = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'  # the program takes its pipes as files 3 and 4
        environment = os.environ | {"HOME": folder}
        process = subprocess.Popen(
            ["bash", "-c", moved, PROGRAM, *options],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=Path(folder),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        with os.fdopen(ours_in, "rb") as reading, os.fdopen(ours_out, "wb") as writing:
            try:
                browser = Browser(reading, writing)
                yield browser
                browser._session = ""
                browser.call("Browser.close")
            finally:
                process.kill()
                process.wait(timeout=30)
        shutil.rmtree(Path(folder) / "Default", ignore_errors=True)  # of which the last process may still write
