// Responses side by side by step: what is shown, how it is shaded, and the state under the pointer.
(() => {
  const { make, number, tint } = page;
  const data = JSON.parse(document.getElementById("data").textContent).samples;
  if (!data) return;
  const LEVELS = 15;
  const ROOM = 12000; // tokens that are shown at once, shared between the steps
  const MOST = 1500; // and of one response
  const byId = (id) => document.getElementById(id);
  const select = { group: byId("group"), quantity: byId("quantity"), outcome: byId("outcome"), step: byId("at-step") };
  const [sides, panel, matrix] = [byId("sides"), byId("panel"), byId("matrix")];
  const now = { group: 0, unit: 0, kept: null, shown: null };
  let spans = [];

  // Arrays that come compressed in base64, unpacked when they are asked for.
  const unpack = async (at, type) => {
    const bytes = Uint8Array.from(atob(data.packs[at]), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new type(await new Response(stream).arrayBuffer());
  };
  const unpacked = new Map();
  const load = (at, type) => {
    if (!unpacked.has(at)) unpacked.set(at, unpack(at, type));
    return unpacked.get(at);
  };
  const loadTrace = async (trace) => {
    if (trace.loaded) return trace;
    const { tokens, values, lists } = trace;
    trace.starts = [0];
    for (const response of trace.responses) trace.starts.push(trace.starts.at(-1) + response.n);
    trace.ids = tokens === null ? null : await load(tokens, Uint32Array);
    trace.codes = await Promise.all(data.quantities.map(({ key }) => load(values[key], Uint8Array)));
    if (lists) {
      trace.lists = {
        at: new Map([...(await load(lists.at, Uint32Array))].map((state, row) => [state, row])),
        ids: await load(lists.ids, Uint32Array),
        own: await load(lists.own, Uint16Array),
        other: await load(lists.other, Uint16Array),
      };
    }
    trace.loaded = true;
    return trace;
  };

  const decode = (quantity, code) =>
    code === 255 ? null : code === 254 ? "∞" : code === 253 ? "−∞" : quantity.table[code];
  const probability = (code) => (code === 65535 ? null : code === 65534 ? 0 : Math.exp(-code / data.logs));
  // For each code of a quantity the class and the level of its shade.
  const shades = data.quantities.map((quantity) =>
    Array.from({ length: 256 }, (_, code) => {
      const value = code < quantity.table.length || code > 252 ? decode(quantity, code) : null;
      const [hue, share] = tint(quantity, value);
      return `t ${hue} ${hue}${Math.round(LEVELS * share)}`;
    }),
  );
  const style = make("style");
  // Plain rules, one for each shade: a calculation for each of 100,000 tokens would be felt.
  for (const hue of ["seq", "pos", "neg"]) {
    for (let level = 1; level <= LEVELS; level += 1) {
      const share = ((page.most * level) / LEVELS).toFixed(1);
      style.textContent += `.t.${hue}${level}{background:color-mix(in srgb,var(--${hue}) ${share}%,transparent)}`;
    }
  }
  document.head.append(style);

  const group = () => data.groups[now.group];
  const traces = () => group().traces;
  const responseOf = (trace, unit) => trace.responses.findIndex((response) => response.unit === unit);
  const words = (response) => {
    const parts = [response.correct === null ? "not graded" : response.correct ? "correct" : "wrong"];
    if (response.cut) parts.push("cut at the limit");
    return parts.join(", ");
  };
  const fits = (response) => ({
    all: true, correct: response.correct === 1, wrong: response.correct === 0, truncated: response.cut === 1,
  })[select.outcome.value];
  const fitsAt = (trace, unit) => {
    const at = responseOf(trace, unit);
    const step = select.step.value;
    return at >= 0 && fits(trace.responses[at]) && (step === "any" || step === trace.step);
  };
  const matching = () => group().units.map((_, unit) => unit).filter((unit) => traces().some((trace) => fitsAt(trace, unit)));

  // The steps and prompts, and which of them fit the filter.
  const drawMatrix = () => {
    const units = matching();
    const body = matrix.tBodies[0];
    body.replaceChildren();
    for (const trace of traces()) {
      const row = body.insertRow();
      const head = make("th", `step ${trace.step}`);
      head.scope = "row";
      row.append(head);
      for (const unit of units) {
        const at = responseOf(trace, unit);
        const cell = row.insertCell();
        if (at < 0) continue;
        const response = trace.responses[at];
        const kind = response.correct === null ? "" : response.correct ? "correct" : "wrong";
        const sign = response.correct === null ? (response.cut ? "✂" : "·") : response.correct ? "✓" : response.cut ? "✂" : "✗";
        const button = make("button", sign, `cell ${kind}${response.cut ? " truncated" : ""}${fitsAt(trace, unit) ? "" : " dim"}`);
        button.type = "button";
        button.dataset.unit = unit;
        button.tabIndex = -1;
        const name = `${group().units[unit].name}, step ${trace.step}: ${words(response)}`;
        button.title = name;
        button.setAttribute("aria-label", name);
        cell.append(button);
      }
    }
    byId("found").textContent = `${units.length} of ${group().units.length} shown`;
    markChosen();
    return units;
  };
  const markChosen = () => {
    let first = true;
    for (const cell of matrix.querySelectorAll(".cell")) {
      const chosen = Number(cell.dataset.unit) === now.unit;
      cell.classList.toggle("chosen", chosen);
      if (chosen) cell.setAttribute("aria-current", "true");
      else cell.removeAttribute("aria-current");
      cell.tabIndex = chosen && first ? 0 : -1;
      if (chosen) first = false;
    }
  };

  // Tokens from one place of a response to another, as spans.
  const put = (box, place, from, to) => {
    const trace = traces()[place.trace];
    const response = trace.responses[place.response];
    const start = trace.starts[place.response];
    const quantity = Number(select.quantity.value);
    const codes = trace.codes[quantity];
    const gaps = response.gaps;
    const part = document.createDocumentFragment();
    for (let at = from; at < to; at += 1) {
      const text = trace.ids === null ? "▇ " : data.texts[trace.ids[start + at]][0];
      if (gaps.some(([first, last]) => first <= at && at < last)) {
        const other = make("span", text, "other");
        other.title = "masked: the student did not generate it";
        part.append(other);
        continue;
      }
      const span = make("span", text);
      span.className = shades[quantity][codes[start + at]] + (trace.lists?.at.has(start + at) ? " lists" : "");
      span.place = [place.trace, place.response, at];
      span.tabIndex = -1;
      part.append(span);
      spans.push(span);
    }
    box.append(part);
  };

  const drawSide = (place, reach) => {
    const trace = traces()[place.trace];
    const side = make("article", undefined, `side${fitsAt(trace, now.unit) ? "" : " dim"}`);
    const title = make("h4", `step ${trace.step} `);
    side.append(title);
    if (place.response < 0) {
      side.append(make("p", "no response", "hint"));
      return side;
    }
    const response = trace.responses[place.response];
    const kind = response.correct === null ? "" : response.correct ? " correct" : " wrong";
    title.append(make("span", words(response), `verdict${kind}`));
    const length = response.length === null ? "" : `${response.length.toLocaleString("en")} tokens · `;
    side.append(make("p", `${length}mean reverse KL ${number(response.kl)} nats`, "hint"));
    const box = make("div", undefined, trace.ids === null ? "tokens blank" : "tokens");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Response at step ${trace.step}`);
    const first = Math.min(response.n, Math.max(Math.min(MOST, Math.ceil(ROOM / traces().length)), reach + 1));
    put(box, place, 0, first);
    side.append(box);
    if (first < response.n) {
      const more = make("button", `show the other ${(response.n - first).toLocaleString("en")} tokens`);
      more.type = "button";
      more.addEventListener("click", () => {
        put(box, place, first, response.n);
        more.remove();
      });
      side.append(more);
    }
    if (response.states < response.of) side.append(make("p", `The first ${response.states.toLocaleString("en")} of ${response.of.toLocaleString("en")} states.`, "cut"));
    return side;
  };

  const drawUnit = async (unit, target) => {
    now.unit = unit;
    const mine = (now.turn = {});
    const { name, prompt } = group().units[unit] ?? { name: "none", prompt: null };
    byId("unit-name").textContent = name;
    byId("prompt-box").hidden = prompt === null;
    byId("prompt").textContent = prompt ?? "";
    markChosen();
    await Promise.all(traces().map(loadTrace));
    if (now.turn !== mine) return; // another one was asked for meanwhile
    spans = [];
    now.kept = now.shown = null;
    sides.replaceChildren(
      ...traces().map((trace, at) => drawSide({ trace: at, response: responseOf(trace, unit) }, target?.[0] === at ? target[2] : 0)),
    );
    const found = target && spans.find((span) => span.place.every((part, at) => part === target[at]));
    if (spans.length) (found ?? spans[0]).tabIndex = 0;
    if (found) {
      keep(found);
      found.focus();
      found.scrollIntoView({ block: "nearest", inline: "center" });
    } else if (spans.length) show(spans[0]);
    sides.dataset.unit = unit;
    sides.dataset.group = now.group;
  };

  const shade = () => {
    const at = Number(select.quantity.value);
    for (const span of spans) {
      const [trace, response, token] = span.place;
      const { codes, starts, lists } = traces()[trace];
      const place = starts[response] + token;
      span.className = shades[at][codes[at][place]] + (lists?.at.has(place) ? " lists" : "") + (span === now.kept ? " kept" : "");
    }
    page.legend(data.quantities[at]);
    if (now.shown) show(now.shown);
  };

  // Both models' top tokens at a state that has them.
  const lists = (trace, state, token) => {
    const row = trace.lists?.at.get(state);
    if (row === undefined) return [];
    const side = (from) => {
      const entries = [];
      for (let at = row * 2 * data.k + from; at < row * 2 * data.k + from + data.k; at += 1) {
        const id = trace.lists.ids[at];
        if (id >> 1) entries.push([(id >> 1) - 1, probability(trace.lists.own[at]), probability(trace.lists.other[at]), id & 1]);
      }
      return entries;
    };
    const [own, other] = [side(0), side(data.k)];
    const label = (name) => data.names[name];
    return [
      page.list(`Student's top ${own.length}`, "p student", "q teacher", own, label, token),
      page.list(`Teacher's top ${other.length}`, "q teacher", "p student", other, label, token),
    ];
  };

  const show = (span) => {
    now.shown = span;
    const [at, response, token] = span.place;
    const trace = traces()[at];
    const state = trace.starts[response] + token;
    const title = make("h3");
    const name = trace.ids === null ? -1 : data.texts[trace.ids[state]][1];
    if (name >= 0) title.append(make("code", data.names[name]));
    title.append(` step ${trace.step}, position ${token}`);
    const values = make("dl");
    data.quantities.forEach((quantity, index) => {
      const chosen = index === Number(select.quantity.value) ? "now" : "";
      values.append(make("dt", quantity.title, chosen), make("dd", number(decode(quantity, trace.codes[index][state]), 2), chosen));
    });
    const chosen = Number(select.quantity.value);
    const value = number(decode(data.quantities[chosen], trace.codes[chosen][state]), 2);
    const first = make("p", `${data.quantities[chosen].title}: ${value}`, "now");
    panel.replaceChildren(title, first, ...lists(trace, state, name), values);
    panel.scrollTop = 0;
  };
  const keep = (span) => {
    now.kept?.classList.remove("kept");
    now.kept = span === now.kept ? null : span;
    now.kept?.classList.add("kept");
    if (span) show(span);
  };

  const drawExtremes = () => {
    const kind = byId("extreme-kind").value;
    byId("extreme-list").replaceChildren(
      ...group().extremes[kind].map(([trace, response, token, value, name]) => {
        const item = make("li");
        const button = make("button", `step ${traces()[trace].step}: `);
        if (name >= 0) button.append(make("code", data.names[name]), " ");
        button.append(number(value));
        button.type = "button";
        button.addEventListener("click", () => {
          const { unit } = traces()[trace].responses[response];
          drawUnit(unit, [trace, response, token]);
        });
        item.append(button);
        return item;
      }),
    );
  };
  const drawGroup = () => {
    now.group = Number(select.group.value);
    select.step.replaceChildren(
      ...[["any", "any step"], ...traces().map(({ step }) => [step, `step ${step}`])].map(([value, name]) => {
        const option = make("option", name);
        option.value = value;
        return option;
      }),
    );
    drawExtremes();
    filter();
  };
  const filter = () => {
    const units = drawMatrix();
    if (!units.length) {
      spans = [];
      sides.replaceChildren(make("p", "No response fits.", "hint"));
      delete sides.dataset.unit;
      byId("unit-name").textContent = "none";
      byId("prompt-box").hidden = true;
      panel.replaceChildren(make("p", "No token is chosen.", "hint"));
      return;
    }
    if (sides.dataset.unit === String(now.unit) && sides.dataset.group === String(now.group) && units.includes(now.unit)) {
      traces().forEach((trace, at) => sides.children[at].classList.toggle("dim", !fitsAt(trace, now.unit)));
    } else drawUnit(units.includes(now.unit) ? now.unit : units[0]);
  };
  const move = (by) => {
    const units = matching();
    const at = units.indexOf(now.unit) + by;
    if (at >= 0 && at < units.length) drawUnit(units[at]);
  };

  const goTo = (span, from) => {
    if (!span) return;
    from.tabIndex = -1;
    span.tabIndex = 0;
    span.focus();
  };
  const walkTokens = (event, span) => {
    const at = spans.indexOf(span);
    const own = () => [...span.parentElement.querySelectorAll(".t")];
    const moves = {
      ArrowRight: () => goTo(spans[at + 1], span),
      ArrowLeft: () => goTo(spans[at - 1], span),
      ArrowDown: () => goTo(page.vertical(own(), span, 1), span),
      ArrowUp: () => goTo(page.vertical(own(), span, -1), span),
      Home: () => goTo(own()[0], span),
      End: () => goTo(own().at(-1), span),
      Enter: () => keep(span),
      " ": () => keep(span),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  };
  const walkMatrix = (event, cell) => {
    const row = cell.closest("tr");
    const beside = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const below = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!beside && !below) return;
    event.preventDefault();
    const own = cell.parentElement;
    const to = beside ? own[beside] : row[below]?.children[own.cellIndex];
    const button = to?.querySelector("button");
    if (!button) return;
    drawUnit(Number(button.dataset.unit)).then(() => button.focus());
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && now.kept) return keep(now.kept);
    const span = event.target.closest?.("#sides .t");
    const cell = event.target.closest?.(".cell");
    if (span) walkTokens(event, span);
    else if (cell) walkMatrix(event, cell);
  });
  for (const kind of ["focusin", "mouseover"]) {
    sides.addEventListener(kind, (event) => {
      const span = event.target.closest?.(".t");
      if (span && !now.kept) show(span);
    });
  }
  sides.addEventListener("click", (event) => {
    const span = event.target.closest?.(".t");
    if (span) keep(span);
  });
  matrix.addEventListener("click", (event) => {
    const cell = event.target.closest?.(".cell");
    if (cell) drawUnit(Number(cell.dataset.unit));
  });
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  select.quantity.addEventListener("change", shade);
  select.group.addEventListener("change", drawGroup);
  for (const one of [select.outcome, select.step]) one.addEventListener("change", filter);
  byId("extreme-kind").addEventListener("change", drawExtremes);
  page.legend(data.quantities[0]);
  if (typeof DecompressionStream === "undefined") {
    sides.replaceChildren(make("p", "Samples need a browser of 2023 or later.", "missing"));
  } else drawGroup();
})();
