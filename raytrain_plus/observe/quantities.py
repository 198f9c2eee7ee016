"""Numbers as people read them: durations, bytes, counts, shares."""

import math

_BYTES = ("B", "KB", "MB", "GB", "TB", "PB")


def number(value: float) -> str:
    """Return a number with about four digits that matter: `0.0123`, `1.5`, `12,345`, `1.2e-07`."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.3g}"
    digits = max(0, 3 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """Return seconds as `0.34 s`, `12.3 s`, `2 min 5 s`, `3 h 12 min` or `2 d 4 h`."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 59.95:
        return f"{seconds:.3f} s" if 0 < seconds < 0.1 else f"{seconds:.{2 - (seconds >= 10)}f} s"
    whole = round(seconds)
    for size, name, small, below in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            large, rest = divmod(whole, size)
            return f"{large} {name} {rest // small} {below}" if rest // small else f"{large} {name}"
    return f"{whole} s"


def bytes_of(count: float) -> str:
    """Return bytes as `512 B`, `1.5 MB`: powers of 1000."""
    power = 0
    while count >= 999.5 and power < len(_BYTES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {_BYTES[power]}" if not power else f"{count:.3g} {_BYTES[power]}"


def share(part: float, whole: float) -> str:
    """Return a part in percent of a whole: `12.3 %`; empty if there is no whole."""
    if whole <= 0:
        return ""
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.05 or percent == 0 else "< 0.1 %"
