"""Opens a page in a browser: what it shows, where, and which errors it has."""

import base64
import html
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 90.0

# Is first on the page, so that it gets every error.
LISTENING = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message)));
addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective));
console.error = (...words) => problems.push(words.join(" "));
</script>"""

# Is last on the page: moves the pointer over each chart, and reports what is where.
TELLING = """<script>
addEventListener("load", () => {
  const box = one => {
    const {left, right, top, width, height} = one.getBoundingClientRect();
    return {left, right, top, width, height};
  };
  const drawings = [...document.querySelectorAll("figure")].map(figure => {
    const svg = figure.querySelector("svg"), area = figure.querySelector(".area");
    let tip = null;
    if (area) {
      const room = area.getBoundingClientRect();
      area.dispatchEvent(new PointerEvent("pointermove", {
        bubbles: true, clientX: room.left + room.width / 2, clientY: room.top + 5}));
      tip = figure.querySelector(".tip")?.textContent ?? "";
    }
    return {title: figure.querySelector("b").textContent, box: box(svg), tip};
  });
  const told = {
    problems, drawings, width: innerWidth, reach: document.documentElement.scrollWidth,
    cards: [...document.querySelectorAll(".card, .tiles li")].map(box),
    text: document.body.innerText, ground: getComputedStyle(document.body).backgroundColor};
  const kept = document.createElement("pre");
  kept.id = "told";
  kept.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(told))));
  document.body.append(kept);
});
</script>"""

# Copies the report of the inner page to where `--dump-dom` finds it.
FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe id="frame" style="width:%dpx;height:3000px;border:0" srcdoc="%s"></iframe><script>
addEventListener("load", () => {
  const told = document.getElementById("frame").contentDocument.getElementById("told");
  if (told) document.body.append(document.importNode(told, true));
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """A browser's report about a page.

    Attributes:
        problems: errors of its scripts, and requests that its own policy blocked.
        drawings: title, box and, of charts, the words under the pointer of each figure.
        width: the window's width, in pixels.
        reach: the right end of the rightmost element, in pixels.
        cards: the boxes of all framed elements.
        text: the visible text.
        ground: the background colour.
    """

    problems: list
    drawings: list
    width: float
    reach: float
    cards: list
    text: str
    ground: str

    def faults(self):
        """Return the errors of the page's layout."""
        wrong = [f"error: {problem}" for problem in self.problems]
        if self.reach > self.width:
            wrong.append(f"the page is {self.reach} wide in a window of {self.width}")
        for drawing in self.drawings:
            box = drawing["box"]
            if box["width"] < 100 or box["height"] < 20:
                wrong.append(f"{drawing['title']} is {box['width']} x {box['height']}")
            if box["left"] < 0 or box["right"] > self.width:
                wrong.append(f"{drawing['title']} leaves the page")
            if drawing["tip"] == "":
                wrong.append(f"{drawing['title']} says nothing under the pointer")
        return wrong


def why_not():
    """Return why there is no browser; empty if there is one."""
    return "" if Path(CHROMIUM).exists() else f"{CHROMIUM} is not installed"


def look(page, width, *, dark=False):
    """Open a page in a frame of a given width in pixels; returns the browser's report.

    A frame is needed because the least width of Chromium's window is wider than a phone.
    """
    text = page.replace("<head>", f"<head>{LISTENING}", 1).replace("</body>", f"{TELLING}</body>")
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        outer = Path(folder) / "page.html"
        outer.write_text(FRAME % (width, html.escape(text)), encoding="utf-8")
        dumped = _dump(outer, dark=dark)
    found = re.search(r'<pre id="told">([^<]*)</pre>', dumped)
    assert found, dumped[-2000:]
    return Seen(**json.loads(base64.b64decode(found.group(1))))


def _dump(page, *, dark):
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            *theme,
            f"--user-data-dir={page.parent / 'profile'}",
            "--window-size=1400,900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout
