(() => {
  const { make, most, number, tint } = page;
  const data = JSON.parse(document.getElementById("data").textContent);
  const select = document.getElementById("quantity");
  const panel = document.getElementById("panel");
  const tokens = [...document.querySelectorAll(".t")];
  let kept = null;
  let shown = null;

  const shade = () => {
    const at = Number(select.value);
    const quantity = data.quantities[at];
    for (const token of tokens) {
      const [hue, share] = tint(quantity, data.states[token.dataset.s].v[at]);
      token.className = `t ${hue}${token === kept ? " kept" : ""}`;
      token.style.setProperty("--a", (most * share).toFixed(1));
    }
    page.legend(quantity);
    if (shown) show(shown);
  };

  const label = (id) => data.labels[id] ?? `#${id}`;
  const show = (token) => {
    shown = token;
    const state = data.states[token.dataset.s];
    const title = make("h3");
    title.append(make("code", label(state.token)), ` position ${state.position}`);
    const values = make("dl");
    data.quantities.forEach((quantity, index) => {
      const now = index === Number(select.value) ? "now" : "";
      values.append(make("dt", `${quantity.title}`, now), make("dd", number(state.v[index]), now));
    });
    panel.replaceChildren(
      title,
      page.list(`Student's top ${state.s.length}`, "p student", "q teacher", state.s, label, state.token),
      page.list(`Teacher's top ${state.t.length}`, "q teacher", "p student", state.t, label, state.token),
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

  document.addEventListener("keydown", (event) => {
    const token = event.target.closest?.(".t");
    if (event.key === "Escape" && kept) return keep(kept);
    if (!token) return;
    const at = tokens.indexOf(token);
    const own = [...token.parentElement.querySelectorAll(".t")];
    const moves = {
      ArrowRight: () => goTo(tokens[at + 1], token),
      ArrowLeft: () => goTo(tokens[at - 1], token),
      ArrowDown: () => goTo(page.vertical(tokens, token, 1), token),
      ArrowUp: () => goTo(page.vertical(tokens, token, -1), token),
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
