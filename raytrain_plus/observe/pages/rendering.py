"""Pages: single HTML files that need nothing else."""

from pathlib import Path
from typing import Any

import jinja2

from raytrain_plus.observe.quantities import duration

_HERE = Path(__file__).parent


def render(template: Path, view: dict[str, Any]) -> str:
    """Fill in a template, which extends `frame.html`.

    All text is escaped, but for the charts, which do so themselves.

    Args:
        template: a file.
        view: what it needs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    parts = {
        "css": (_HERE / "style.css").read_text(encoding="utf-8"),
        "js": (_HERE / "script.js").read_text(encoding="utf-8"),
    }
    return environment.get_template(template.name).render(**view, **parts)
