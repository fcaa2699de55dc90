"""A headless Chromium that tests drive by its DevTools protocol, over a pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
PROBLEMS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


def executable():
    """The path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """An open page. problems: errors and warnings of its console. requests: addresses asked for."""

    def __init__(self, send, receive):
        self.send, self.receive, self.numbers = send, receive, itertools.count(1)
        self.problems, self.requests, self.session = [], [], None

    def call(self, method, **params):
        """The answer to a command of the protocol; keeps events on the way."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        self.send(message | ({"sessionId": self.session} if self.session else {}))
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.note(answer)

    def note(self, event):
        """Keep what an event says."""
        if event["method"] in PROBLEMS:
            self.problems.append(event["params"])
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])

    def attach(self):
        """Open an empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def run(self, script):
        """The value of a script, or of its promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def look(self, width, scheme="light", path=None):
        """Show the page in a width and a color scheme; write a picture of it to a path."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        if path:
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
            path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(folder):
    """A page at the index.html of a folder, which a server on this machine serves."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, launched() as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page.attach()
            page.address = f"http://127.0.0.1:{server.server_port}/"
            page.call("Page.navigate", url=page.address)
            while page.run("document.readyState") != "complete":
                pass
            yield page
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and prints nothing."""

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def launched():
    """A browser with its own profile, which ends with the block."""
    (commands, own_write), (own_read, answers) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}']
        process = subprocess.Popen(
            [*shell, executable(), *ARGUMENTS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        try:
            with os.fdopen(own_read, "rb") as reader:
                yield Page(partial(write, own_write), partial(read, reader, bytearray()))
        finally:
            os.close(own_write)
            process.kill()
            process.wait()


def write(descriptor, message):
    """Send a message of the protocol."""
    os.write(descriptor, json.dumps(message).encode() + b"\0")


def read(reader, kept):
    """The next message of the protocol. kept: bytes after it."""
    while b"\0" not in kept:
        part = reader.read1()
        assert part, "the browser has ended"
        kept += part
    message, _, rest = bytes(kept).partition(b"\0")
    kept[:] = rest
    return json.loads(message)
