"""A page as a browser makes it: what it shows, where, and what went wrong in it."""

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

# Stands before everything else of the page, so that it hears of every error.
LISTENING = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message)));
addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective));
console.error = (...words) => problems.push(words.join(" "));
</script>"""

# Stands behind everything: moves the pointer over each chart, and tells what is where.
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

# Takes what the page within has told to where `--dump-dom` finds it.
FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe id="frame" style="width:%dpx;height:3000px;border:0" srcdoc="%s"></iframe><script>
addEventListener("load", () => {
  const told = document.getElementById("frame").contentDocument.getElementById("told");
  if (told) document.body.append(document.importNode(told, true));
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What a browser tells of a page.

    Attributes:
        problems: errors of its scripts, and what its own policy forbade.
        drawings: title, box and, of charts, the words under the pointer of each figure.
        width: of the window, in pixels.
        reach: how far to the right anything stands.
        cards: the boxes of all that is framed.
        text: as people see it.
        ground: the colour behind it.
    """

    problems: list
    drawings: list
    width: float
    reach: float
    cards: list
    text: str
    ground: str

    def faults(self):
        """Return what is wrong with the page as it is laid out."""
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
    """Say why there is no browser; empty if there is one."""
    return "" if Path(CHROMIUM).exists() else f"{CHROMIUM} is not installed"


def look(page, width, *, dark=False):
    """Open a page in a frame of so many pixels; returns what there is to see.

    In a frame, since the least width of Chromium's window is wider than a phone.
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
