"""A page in a headless Chromium over its DevTools protocol; no driver and no other package needed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


def find_browser() -> str | None:
    """DAREC_SEARCH_BROWSER, or a Chromium or Chrome on PATH or in Playwright's cache."""
    named = os.environ.get("DAREC_SEARCH_BROWSER")
    if named:
        return named
    cached = sorted((Path.home() / ".cache" / "ms-playwright").glob("chromium*/chrome-linux*/*shell"))
    cached += sorted((Path.home() / ".cache" / "ms-playwright").glob("chromium*/chrome-linux*/chrome"))
    return next((path for name in NAMES if (path := shutil.which(name))), str(cached[0]) if cached else None)


def visit(browser: str, page: Path, views: list[dict[str, Any]], script: str, shots: Path | None = None) -> list[Any]:
    """Open a page in each view (width, height, dark) and evaluate a script there.

    Returns:
        for each view what the script gives, and under "console" every error and every request to the network.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return asyncio.run(_visit(Path(profile) / "DevToolsActivePort", page, views, script, shots))
        finally:
            process.terminate()
            process.wait(30)


async def _visit(port_file: Path, page: Path, views: list[dict[str, Any]], script: str, shots: Path | None) -> list:
    for _ in range(600):
        if port_file.exists() and port_file.read_text().count("\n"):
            break
        await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as response:
            url = (await response.json())["webSocketDebuggerUrl"]
        async with session.ws_connect(url, max_msg_size=0) as socket:
            tab = _Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            return [await _look(tab, page, view, script, shots) for view in views]


async def _look(tab: _Tab, page: Path, view: dict[str, Any], script: str, shots: Path | None) -> dict[str, Any]:
    tab.console.clear()
    scheme = {"name": "prefers-color-scheme", "value": "dark" if view["dark"] else "light"}
    await tab.call("Emulation.setEmulatedMedia", features=[scheme])
    size = {"width": view["width"], "height": view["height"], "deviceScaleFactor": view.get("scale", 1)}
    await tab.call("Emulation.setDeviceMetricsOverride", **size, mobile=view["width"] < 600)
    await tab.call("Page.navigate", url=page.absolute().as_uri())
    await tab.event("Page.loadEventFired")
    answer = await tab.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in answer, answer
    if shots is not None:
        whole = {"captureBeyondViewport": bool(view.get("whole"))}
        image = await tab.call("Page.captureScreenshot", format="png", **whole)
        (shots / f"{view['name']}.png").write_bytes(base64.b64decode(image["data"]))
    return {**answer["result"]["value"], "console": list(tab.console)}


class _Tab:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number, self.console = socket, 0, []
        self.events: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_str(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = await self._receive()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    async def event(self, name: str) -> None:
        while name not in self.events:
            await self._receive()
        self.events.clear()

    async def _receive(self) -> dict[str, Any]:
        message = json.loads((await self.socket.receive(timeout=120)).data)
        method, parameters = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(parameters))
        if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.console.append(json.dumps(parameters))
        if method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:")):
            self.console.append(parameters["request"]["url"])
        return message
