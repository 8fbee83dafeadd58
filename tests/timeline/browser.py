"""A headless Chromium driven over its own pipe: no package, no port, no network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60
"""Seconds to wait for any one answer; a busy machine starts a browser in ten."""


def executable() -> str | None:
    """Where a Chromium is: what MEMCALC_CHROMIUM names, or one on the path."""
    return os.environ.get("MEMCALC_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. ``problems`` are console errors, exceptions and failed loads; ``asked`` are the addresses it asked for."""

    def __init__(self, path: str):
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.number, self.rest = 0, b""
        self.folder = TemporaryDirectory()
        read_in, self.out = os.pipe()
        self.into, write_out = os.pipe()
        words = [
            path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
            f"--user-data-dir={self.folder.name}", "about:blank",
        ]  # fmt: skip

        def place():
            # the browser reads its commands from descriptor 3 and writes its answers to 4
            high = [os.dup2(descriptor, number) for descriptor, number in ((read_in, 63), (write_out, 64))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            words, close_fds=False, preexec_fn=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read_in)
        os.close(write_out)
        self.session = None
        page = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
        self.folder.cleanup()

    def send(self, method, **params):
        """Send a command and wait for its answer."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps({"id": self.number, "method": method, "params": params, **session}).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]

    def _read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            assert select.select([self.into], [], [], max(0.0, end - time.monotonic()))[0], "the browser does not answer"
            piece = os.read(self.into, 1 << 20)
            assert piece, "the browser is gone"
            self.rest += piece
        head, _, self.rest = self.rest.partition(b"\0")
        told = json.loads(head)
        self._note(told.get("method"), told.get("params", {}))
        return told

    def _note(self, method, params):
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(params["entry"]))
        elif method == "Network.loadingFailed":
            self.problems.append(json.dumps(params))
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def run(self, expression):
        """The value of a JavaScript expression."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression):
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def frame(self):
        """Wait for the next picture, so that what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def open(self, path, *, width=1280, height=900, dark=False, phone=False):
        """Open a file in a window of that size and theme, and wait until the page says it is drawn."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.theme("dark" if dark else "light")
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        self.until("document.documentElement?.dataset.ready === 'yes' && document.readyState === 'complete'")
        self.frame()

    def theme(self, name):
        """Prefer light or dark, as a system setting does."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, *keys):
        """Press keys one after another."""
        codes = {
            "Enter": 13,
            "Escape": 27,
            "Tab": 9,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            " ": 32,
        }
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)
        self.frame()

    def mouse(self, kind, x, y, **more):
        """A mouse event: mouseMoved, mousePressed or mouseReleased."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.frame()

    def click(self, x, y):
        """Press and release the left button."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="none" if kind == "mouseMoved" else "left", clickCount=int(kind != "mouseMoved"))

    def box(self, selector):
        """(left, top, width, height) of an element in the window."""
        return self.run(
            f"(b => [b.left, b.top, b.width, b.height])(document.querySelector({selector!r}).getBoundingClientRect())"
        )

    def picture(self, path, *, whole=True):
        """A screenshot, of the whole page or of what the window shows."""
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(told["data"]))

    def pdf(self, path):
        """The page as it prints."""
        told = self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(told["data"]))
