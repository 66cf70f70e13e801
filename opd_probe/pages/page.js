"use strict";
const page = (() => {
  const number = (value, digits = 3) => {
    if (value === null) return "–";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    const text = size === 0 ? "0" : size < 1e-4 || size >= 1e5 ? value.toExponential(1) : String(+value.toPrecision(digits));
    return text.replace("-", "−");
  };
  const clamp = (share) => Math.min(1, Math.max(0, share));
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  // Share of full shading of a value, and which of the three hues it takes.
  const tint = (quantity, value) => {
    if (value === null) return ["none", 0];
    const plain = typeof value === "string" ? (value === "∞" ? Infinity : -Infinity) : value;
    if (quantity.scale === "diverging") return [plain < 0 ? "neg" : "pos", clamp(Math.abs(plain) / quantity.high)];
    const share = (plain - quantity.low) / (quantity.high - quantity.low);
    return ["seq", clamp(quantity.scale === "reversed" ? 1 - share : share)];
  };
  const most = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--most"));

  // The scale of a quantity beside its selection.
  const legend = (quantity) => {
    const mix = (hue, share) => `color-mix(in srgb, var(--${hue}) ${most * share}%, transparent)`;
    const ends = {
      diverging: [mix("neg", 1), "transparent", mix("pos", 1)],
      sequential: ["transparent", mix("seq", 1)],
      reversed: [mix("seq", 1), "transparent"],
    }[quantity.scale];
    document.getElementById("ramp").style.background = `linear-gradient(to right, ${ends.join(", ")})`;
    document.getElementById("low").textContent = (quantity.clipped_low ? "≤ " : "") + number(quantity.low);
    document.getElementById("high").textContent = (quantity.clipped_high ? "≥ " : "") + number(quantity.high);
    document.getElementById("unit").textContent = quantity.unit;
    document.getElementById("reading-of").textContent = quantity.reading;
  };

  // One model's top tokens: entries are [token, its own probability, the other model's, whether both lists have it].
  const list = (caption, first, second, entries, label, sampled) => {
    const table = make("table", undefined, "top");
    table.append(make("caption", caption));
    const head = table.createTHead().insertRow();
    for (const name of ["token", first, second]) head.append(make("th", name));
    const body = table.createTBody();
    for (const [id, own, other, shared] of entries) {
      const row = body.insertRow();
      row.className = shared ? "shared" : "alone";
      const name = make("th");
      name.scope = "row";
      name.append(make("span", shared ? "●" : "○", "mark"), make("code", label(id)));
      if (id === sampled) name.append(make("span", "◂ sampled", "sampled"));
      const bar = make("span", undefined, "bar");
      bar.style.setProperty("--w", `${100 * (own ?? 0)}%`);
      const cell = make("td", number(own));
      cell.prepend(bar);
      row.append(name, cell, make("td", number(other)));
    }
    return table;
  };

  // The token on the next or previous line that stands nearest to this one.
  const vertical = (tokens, token, step) => {
    let at = tokens.indexOf(token) + step;
    const place = token.getBoundingClientRect();
    let line = null;
    let best = null;
    for (; at >= 0 && at < tokens.length; at += step) {
      const box = tokens[at].getBoundingClientRect();
      if (Math.abs(box.top - place.top) < 4) continue;
      if (line !== null && Math.abs(box.top - line) > 4) break;
      line = box.top;
      if (best === null || Math.abs(box.left - place.left) < best[0]) best = [Math.abs(box.left - place.left), tokens[at]];
    }
    return best && best[1];
  };
  return { number, clamp, make, tint, most, legend, list, vertical };
})();
