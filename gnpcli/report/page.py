"""The HTML around reports: one file, no external resource, light and dark, readable on a phone and
on paper.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from gnpcli.files import write_atomically
from gnpcli.report.palette import COLOURS, GRID, GRID_DARK, INK, INK_DARK, MUTED, MUTED_DARK

_LIGHT = (
    f"--ground: #ffffff; --card: #f6f8fa; --ink: {INK}; --muted: {MUTED}; --grid: {GRID}; --warn: "
    "#fff4de; "
    + (
        "--warn-ink: #7a4a00; "
        + " ".join(f"--c{index}: {light};" for index, (light, _) in enumerate(COLOURS))
    )
)
_DARK = (
    f"--ground: #14181d; --card: #1c2229; --ink: {INK_DARK}; --muted: {MUTED_DARK}; --grid: "
    f"{GRID_DARK}; "
    + (
        "--warn: #3a2c10; --warn-ink: #ffd58a; "
        + " ".join(f"--c{index}: {dark};" for index, (_, dark) in enumerate(COLOURS))
    )
)

STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    f"@media print {{ :root {{ color-scheme: light; {_LIGHT} }} }}\n"
    """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
h3 { font-size: .95rem; margin: 1rem 0 .35rem; }
p { margin: .5rem 0; max-width: 75ch; }
.sub { color: var(--muted); overflow-wrap: anywhere; }
.badge { display: inline-block; padding: 0 .6em; border: 1px solid var(--grid); border-radius: 1em; font-size: .8rem;
  color: var(--ink); background: var(--card); }
.badge.bad { background: var(--warn); color: var(--warn-ink); border-color: currentColor; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.formula { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .9rem 1.1rem; }
.formula .math { font: 1.25rem/1.6 "STIX Two Math", "Cambria Math", "Latin Modern Math", Georgia, serif;
  overflow-x: auto; }
.formula i { font-style: italic; }
.warnings { list-style: none; margin: 1rem 0; padding: 0; }
.warnings li { background: var(--warn); color: var(--warn-ink); border-radius: .4rem; padding: .5rem .8rem;
  margin: .4rem 0; overflow-wrap: anywhere; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0 1rem; padding: 0;
  font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.chart { margin: 0; padding: .7rem .8rem .4rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: .5rem; position: relative; break-inside: avoid; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; margin-bottom: .2rem; }
.chart figcaption strong { flex: 1 0 auto; }
.chart > svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
.chart > img { display: block; max-width: 100%; margin: auto; }
.swatch { width: 22px; height: 8px; vertical-align: middle; }
.tip { position: absolute; pointer-events: none; z-index: 1; background: var(--ground); color: var(--ink);
  border: 1px solid var(--muted); border-radius: .35rem; padding: .3rem .5rem; font-size: .78rem; line-height: 1.4;
  white-space: nowrap; font-variant-numeric: tabular-nums; box-shadow: 0 2px 8px rgb(0 0 0 / .2); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
code { font: .92em ui-monospace, "SFMono-Regular", Menlo, Consolas, "Liberation Mono", monospace; }
details > summary { cursor: pointer; }
.columns { columns: 21rem; column-gap: 2rem; }
.columns > * { break-inside: avoid; }
.columns table { width: 100%; }
.columns td { overflow-wrap: anywhere; }
.columns .sub { font-size: .82rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media (max-width: 34rem) { body { padding: 1.1rem .8rem 3rem; } .tiles { gap: .5rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .charts { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  .tile, .formula, .chart, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""
)

SCRIPT = """\
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), figure = svg.parentElement, name = "http://www.w3.org/2000/svg";
  const [left, top, width, height] = chart.box;
  const tip = document.createElement("div"), cross = document.createElementNS(name, "g");
  tip.className = "tip"; tip.hidden = true; figure.append(tip); svg.append(cross);
  const scale = chart.log ? Math.log10 : v => v;
  const px = x => left + width * (x - chart.x[0]) / (chart.x[1] - chart.x[0]);
  const py = y => top + height * (1 - (scale(y) - scale(chart.y[0])) / (scale(chart.y[1]) - scale(chart.y[0])));
  const number = v => v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4));
  const text = v => v === null ? "not finite" : number(v);
  const draw = (tag, attributes, css) => {
    const element = document.createElementNS(name, tag);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.style.cssText = css; cross.append(element);
  };
  const hide = () => { tip.hidden = true; cross.replaceChildren(); };
  const show = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (at.x < left - 4 || at.x > left + width + 4 || at.y < top || at.y > top + height) return hide();
    const wanted = chart.x[0] + (at.x - left) / width * (chart.x[1] - chart.x[0]);
    const found = chart.series.map(one => {
      let best = 0;
      one.x.forEach((x, i) => { if (Math.abs(x - wanted) < Math.abs(one.x[best] - wanted)) best = i; });
      return { one, best, x: one.x[best] };
    });
    const x = found.reduce((near, f) => Math.abs(f.x - wanted) < Math.abs(near - wanted) ? f.x : near, found[0].x);
    cross.replaceChildren(); tip.replaceChildren();
    draw("line", { x1: px(x), x2: px(x), y1: top, y2: top + height }, "stroke: var(--muted); stroke-width: .7");
    const head = document.createElement("div");
    head.textContent = `${chart.axis} ${text(x)}`; tip.append(head);
    for (const { one, best } of found) {
      const y = one.y[best], row = document.createElement("div"), dot = document.createElement("span");
      dot.textContent = "\\u25cf "; dot.style.color = one.colour; row.append(dot);
      const band = one.low && y !== null ? ` (${text(one.low[best])} to ${text(one.high[best])})` : "";
      row.append(`${one.name} ${text(y)}${band}`); tip.append(row);
      if (y !== null && (!chart.log || y > 0))
        draw("circle", { cx: px(one.x[best]), cy: py(y), r: 2.2 }, `fill: ${one.colour}`);
    }
    tip.hidden = false;
    const box = figure.getBoundingClientRect(), room = box.width - tip.offsetWidth - 8;
    const beside = event.clientX - box.left + 14;
    tip.style.left = `${beside > room ? Math.max(4, event.clientX - box.left - tip.offsetWidth - 14) : beside}px`;
    tip.style.top = `${Math.max(4, event.clientY - box.top - tip.offsetHeight - 10)}px`;
  };
  svg.addEventListener("pointermove", show); svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str) -> str:
    """Return a whole page: `body` with `STYLE` and `SCRIPT`, under a policy that lets a browser
    fetch nothing.

    Args:
        title: Plain text.
        body: HTML, such as `gnpcli.report.charts.inline_charts` and `table` return.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}"
        f"<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def write(path: Path, title: str, body: str) -> None:
    """Write `document` to a file, which is whole or not there (OSError where it cannot be)."""
    write_atomically(path, document(title, body))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """Return a table of plain texts as HTML.

    Args:
        columns: Heads; all empty for none.
        rows: Cells, as many as columns.
        numbers: Which columns are set to the right.
    """

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in numbers else ''}>{html.escape(text)}</{tag}>"
            for index, text in enumerate(texts)
        )

    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(columns) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>\n'


def tiles(values: Mapping[str, str]) -> str:
    """Return the figures that matter most, each over its name."""
    inner = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{inner}</div>\n'


def warnings(texts: Sequence[str]) -> str:
    """Return a list of warnings; nothing where there is none."""
    if not texts:
        return ""
    return (
        f'<ul class="warnings">{"".join(f"<li>{html.escape(text)}</li>" for text in texts)}</ul>\n'
    )
