"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const select = document.getElementById("quantity");
  const panel = document.getElementById("panel");
  const tokens = [...document.querySelectorAll(".t")];
  const most = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--most"));
  let kept = null;
  let shown = null;

  const number = (value) => {
    if (value === null) return "–";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    const text = size === 0 ? "0" : size < 1e-4 || size >= 1e5 ? value.toExponential(1) : String(+value.toPrecision(3));
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

  const shade = () => {
    const at = Number(select.value);
    const quantity = data.quantities[at];
    for (const token of tokens) {
      const [hue, share] = tint(quantity, data.states[token.dataset.s].v[at]);
      token.className = `t ${hue}${token === kept ? " kept" : ""}`;
      token.style.setProperty("--a", (most * share).toFixed(1));
    }
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
    if (shown) show(shown);
  };

  const list = (caption, first, second, entries, sampled) => {
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
      name.append(make("span", shared ? "●" : "○", "mark"), make("code", data.labels[id] ?? `#${id}`));
      if (id === sampled) name.append(make("span", "◂ sampled", "sampled"));
      const bar = make("span", undefined, "bar");
      bar.style.setProperty("--w", `${100 * (own ?? 0)}%`);
      const cell = make("td", number(own));
      cell.prepend(bar);
      row.append(name, cell, make("td", number(other)));
    }
    return table;
  };

  const show = (token) => {
    shown = token;
    const state = data.states[token.dataset.s];
    const title = make("h3");
    title.append(make("code", data.labels[state.token] ?? `#${state.token}`), ` position ${state.position}`);
    const values = make("dl");
    data.quantities.forEach((quantity, index) => {
      const now = index === Number(select.value) ? "now" : "";
      values.append(make("dt", `${quantity.title}`, now), make("dd", number(state.v[index]), now));
    });
    panel.replaceChildren(
      title,
      list(`Student's top ${state.s.length}`, "p student", "q teacher", state.s, state.token),
      list(`Teacher's top ${state.t.length}`, "q teacher", "p student", state.t, state.token),
      values,
    );
  };

  const keep = (token) => {
    kept?.classList.remove("kept");
    kept = token === kept ? null : token;
    kept?.classList.add("kept");
    if (token) show(token);
  };

  const goTo = (token, from) => {
    if (!token) return;
    if (from && from.parentElement === token.parentElement) from.tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  };

  // The token on the next or previous line that stands nearest to this one.
  const vertical = (token, step) => {
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

  document.addEventListener("keydown", (event) => {
    const token = event.target.closest?.(".t");
    if (event.key === "Escape" && kept) return keep(kept);
    if (!token) return;
    const at = tokens.indexOf(token);
    const own = [...token.parentElement.querySelectorAll(".t")];
    const moves = {
      ArrowRight: () => goTo(tokens[at + 1], token),
      ArrowLeft: () => goTo(tokens[at - 1], token),
      ArrowDown: () => goTo(vertical(token, 1), token),
      ArrowUp: () => goTo(vertical(token, -1), token),
      Home: () => goTo(own[0], token),
      End: () => goTo(own[own.length - 1], token),
      Enter: () => keep(token),
      " ": () => keep(token),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  });
  document.addEventListener("focusin", (event) => {
    const token = event.target.closest?.(".t");
    if (token && !kept) show(token);
  });
  document.addEventListener("mouseover", (event) => {
    const token = event.target.closest?.(".t");
    if (token && !kept) show(token);
  });
  document.addEventListener("click", (event) => {
    const token = event.target.closest?.(".t");
    if (token) keep(token);
  });
  select.addEventListener("change", shade);
  shade();
  if (tokens.length) show(tokens.reduce((worst, token) => {
    const value = (one) => tint(data.quantities[0], data.states[one.dataset.s].v[0])[1];
    return value(token) > value(worst) ? token : worst;
  }));
})();
