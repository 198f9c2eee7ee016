// Shows the values under the pointer. Without it the page says the same, but for these.
"use strict";

function duration(seconds) {
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 2 : 1) + " s";
  const units = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];
  const whole = Math.round(seconds);
  const [size, name, small, below] = units.find(([size]) => whole >= size);
  const rest = Math.floor((whole % size) / small);
  return Math.floor(whole / size) + " " + name + (rest ? " " + rest + " " + below : "");
}

function number(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(5)));
}

// The last point at or before x for steps, else the nearest.
function pointAt(points, x, steps) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (points[middle][0] <= x) low = middle; else high = middle - 1;
  }
  const next = points[Math.min(low + 1, points.length - 1)];
  return !steps && Math.abs(next[0] - x) < Math.abs(points[low][0] - x) ? next : points[low];
}

// Of clouds of named points the one nearest to a place, in parts of the drawing.
function nearest(told, x, y, room) {
  const place = (axis, value) => axis.log
    ? Math.log(value / axis.low) / Math.log(axis.high / axis.low)
    : (value - axis.low) / (axis.high - axis.low);
  let best = Infinity, found = null;
  for (const one of told.series) one.points.forEach(([px, py], i) => {
    const away = Math.hypot((place(told.x, px) - x) * room.width, (place(told.y, py) - y) * room.height);
    if (away < best) { best = away; found = [one.names[i], px, py, place(told.x, px)]; }
  });
  return found;
}

function watch(figure) {
  const told = JSON.parse(figure.querySelector("script").textContent);
  const area = figure.querySelector(".area");
  const cursor = document.createElement("i"), tip = document.createElement("div");
  cursor.className = "cursor";
  tip.className = "tip";
  const { low, high, log, label, seconds } = told.x;
  const sayX = seconds ? duration : number, sayY = told.y.seconds ? duration : number;
  const clouds = told.series.some(one => one.names);

  function show(event) {
    const room = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - room.left) / room.width));
    let words, place = share;
    if (clouds) {
      const [name, x, y, at] = nearest(told, share, (room.bottom - event.clientY) / room.height, room);
      words = [name, label + " " + sayX(x), told.y.label + " " + sayY(y)];
      place = at;
    } else {
      const x = log ? low * (high / low) ** share : low + (high - low) * share;
      const found = told.series.map(one => [one.label, pointAt(one.points, x, one.steps)]);
      const at = found.length && !told.series[0].steps ? found[0][1][0] : x;
      words = [label + " " + sayX(seconds ? at : Math.round(at * 1e6) / 1e6),
        ...found.map(([name, point]) => name + " " + sayY(point[1]))];
    }
    tip.textContent = words.join("\n");
    cursor.style.left = 100 * place + "%";
    tip.style.left = place < 0.5 ? "calc(" + 100 * place + "% + .6rem)" : "";
    tip.style.right = place < 0.5 ? "" : "calc(" + 100 * (1 - place) + "% + .6rem)";
    if (told.series.length) area.append(cursor, tip);
  }
  area.addEventListener("pointermove", show);
  area.addEventListener("pointerdown", show);
  area.addEventListener("pointerleave", () => { cursor.remove(); tip.remove(); });
}

document.querySelectorAll("figure.chart").forEach(watch);
