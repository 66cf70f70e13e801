// Reading values off the charts with pointer and keys, and hiding curves.
(() => {
  const { make } = page;
  const data = JSON.parse(document.getElementById("data").textContent);
  const off = new Set();

  const put = (figure, at) => {
    const { stops, names } = data.charts[figure.id];
    const plot = figure.querySelector(".plot");
    const tip = figure.querySelector(".tip");
    const svg = figure.querySelector("svg");
    if (at < 0 || at >= stops.length) return;
    const stop = stops[at];
    figure.dataset.at = at;
    const cursor = svg.querySelector(".cursor");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, stop.x);
    plot.classList.add("reading");
    const head = make("p");
    head.append(make("strong", /^\d/.test(stop.label) ? `step ${stop.label}` : stop.label));
    const lines = stop.texts.filter(([series]) => names || !off.has(series)).map(([series, text]) => {
      const line = make("p");
      line.append(make("span", undefined, `key s${series % 8}`), `${(names ?? data.series)[series]}: ${text}`);
      return line;
    });
    tip.replaceChildren(head, ...lines);
    tip.hidden = false;
    const share = stop.x / svg.viewBox.baseVal.width;
    tip.style.left = share > 0.5 ? "auto" : `calc(${100 * share}% + .6rem)`;
    tip.style.right = share > 0.5 ? `calc(${100 * (1 - share)}% + .6rem)` : "auto";
  };
  const leave = (figure) => {
    figure.querySelector(".plot").classList.remove("reading");
    figure.querySelector(".tip").hidden = true;
  };

  for (const figure of document.querySelectorAll(".chart")) {
    const svg = figure.querySelector("svg");
    const { stops } = data.charts[figure.id];
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return stops.reduce((best, stop, at) => (Math.abs(stop.x - x) < Math.abs(stops[best].x - x) ? at : best), 0);
    };
    svg.addEventListener("pointermove", (event) => put(figure, nearest(event)));
    svg.addEventListener("pointerdown", (event) => put(figure, nearest(event)));
    svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) leave(figure); });
    svg.addEventListener("focus", () => put(figure, stops.length - 1));
    svg.addEventListener("blur", () => leave(figure));
    svg.addEventListener("keydown", (event) => {
      const at = Number(figure.dataset.at ?? stops.length - 1);
      const to = {
        ArrowRight: Math.min(at + 1, stops.length - 1), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: stops.length - 1,
      }[event.key];
      if (event.key === "Escape") leave(figure);
      if (to === undefined) return;
      event.preventDefault();
      put(figure, to);
    });
  }

  for (const button of document.querySelectorAll(".key-button")) {
    button.addEventListener("click", () => {
      const series = Number(button.dataset.series);
      if (!off.delete(series)) off.add(series);
      button.setAttribute("aria-pressed", String(!off.has(series)));
      for (const one of document.querySelectorAll(`#curves .charts .series[data-series="${series}"]`)) one.classList.toggle("off", off.has(series));
    });
  }
})();
