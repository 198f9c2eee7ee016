"""An estimate with its interval, as a small drawing for a row of a table."""

import html

from raytrain_plus.observe.charts import Tone
from raytrain_plus.observe.scales import Scale

_WIDTH, _HEIGHT = 1000, 40  # units of the drawing


def interval(
    ends: tuple[float, float], value: float, scale: Scale, zero: float, told: str, tone: Tone
) -> str:
    """Return a line from end to end with a dot, and a rule at the value that means no effect.

    Args:
        ends: of the interval; what lies outside of the scale is cut off.
        value: the estimate.
        scale: the same for all rows of a table.
        zero: the value that means no effect.
        told: the same in words, for screen readers.
        tone: how it is coloured.
    """
    low, high, at, none = (_WIDTH * scale.place(x) for x in (*ends, value, zero))
    middle = _HEIGHT / 2
    return (
        f'<svg class="interval {tone}" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{html.escape(told, quote=True)}">'
        f'<path class="zero" d="M{none:.1f} 0V{_HEIGHT}"/>'
        f'<path class="reach" d="M{low:.1f} {middle}H{high:.1f}"/>'
        f'<path class="at" d="M{at:.1f} {middle}h0"/></svg>'
    )
