"""A page in a real browser: headless chromium, driven over its debugging pipe."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.pages.looking import BROWSER

KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9,
        "Home": 36, "End": 35}  # fmt: skip


class Tab:
    """One page in the browser. What goes wrong on it is in ``faults``: errors of its scripts, dialogs, requests."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._calls = 0
        self._session: str | None = None
        self.faults: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._calls += 1
        number = self._calls
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])
            self._note(found)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(about["exceptionDetails"])[:500])
        if method == "Log.entryAdded":
            self.faults.append(about["entry"]["text"])
        if method == "Page.javascriptDialogOpening":
            self.faults.append(f"a dialog: {about['message']}")
        if method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("file:", "data:")):
            self.faults.append(f"a request: {about['request']['url']}")

    def attach(self) -> None:
        """Make a tab and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, **media: str) -> None:
        """Load a file at a size, with media features such as ``prefers-color-scheme``."""
        self.faults.clear()
        self.size(width, height)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int = 900) -> None:
        """The size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, expression: str) -> Any:
        """The value of an expression on the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition holds, looked at in each frame."""
        self.run(
            f"new Promise((done) => {{ const look = () => ({condition}) ? done(1) : setTimeout(look, 5); look(); }})"
        )

    def text(self, selector: str) -> str:
        """What one can read of the first element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def _box(self, selector: str) -> list[float]:
        """Left, top, width and height of the first line of an element, brought into sight."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getClientRects()[0];"
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        return [float(value) for value in found]

    def hover(self, selector: str, share: float = 0.5) -> None:
        """Point at an element, at a share of its width."""
        left, top, width, height = self._box(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + share * width, y=top + height / 2)

    def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        left, top, width, height = self._box(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=left + width / 2,
                y=top + height / 2,
                button=button,
                clickCount=1,
            )

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for key in keys:
            code = KEYS[key]
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a selection, as a user does."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **(
            {"clip": {"x": 0, "y": 0, "scale": 1, **self.run(
                "({width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight})")}}
            if whole else {}))  # fmt: skip
        path.write_bytes(b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as a printer gets it, as PDF."""
        return b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one tab, which goes when the block ends."""
    assert BROWSER is not None
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()

    def wire() -> None:  # the browser reads its commands from 3 and answers on 4
        a, b = os.dup(to_browser), os.dup(from_browser)
        os.dup2(a, 3)
        os.dup2(b, 4)
        for end in (3, 4):
            os.set_inheritable(end, True)

    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={profile}", "about:blank",
            ],
            preexec_fn=wire, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        tab = Tab(write, read)
        try:
            tab.attach()
            yield tab
        finally:
            process.kill()
            process.wait()
            os.close(write)
            os.close(read)
