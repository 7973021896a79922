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
      dot.textContent = "\u25cf "; dot.style.color = one.colour; row.append(dot);
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
