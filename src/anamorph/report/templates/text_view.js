// Texts, token by token. Only the few on show are in the page and unpacked, so that thousands cost
// nothing. Whatever comes from outside is set as text, never as HTML.
(() => {
  "use strict";
  const box = document.getElementById("text-view");
  if (!box) return;
  const { splits, first: split, proxies, pieces, separate, top, texts, cells } = JSON.parse(
    document.getElementById("text-view-data").textContent);
  const PAGE = 5;
  const SCORED = 1, SAME = 2, MODEL_RIGHT = 4, PROXY_RIGHT = 8; // of a position
  const BITS = 10000, NONE = 65535, SHADES = 9, LEAST = 0.005; // bits that are shaded at all
  const part = (name) => document.getElementById(`text-view-${name}`);
  const [splitMenu, proxyMenu, orderMenu, only] = ["split", "proxy", "order", "only"].map(part);
  const [list, said, told] = ["list", "said", "told"].map(part);
  const fill = (menu, names) => names.forEach((name, number) => menu.add(new Option(name, number)));
  fill(splitMenu, splits);
  splitMenu.value = String(split);
  fill(proxyMenu, proxies);
  const [worst, ordered] = [true, false].map((ranked) =>
    Object.values(cells).some((cell) => cell.some((each) => (each.rank !== null) === ranked)));
  if (worst) orderMenu.add(new Option("worst first", "worst"));
  if (ordered) orderMenu.add(new Option("as they come", "all"));
  orderMenu.closest("label").hidden = orderMenu.options.length < 2;
  let first = 0;

  const unpacked = (packed, Kind) => {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    return new Kind(bytes.buffer);
  };
  const parts = (entry) => {
    const text = texts[entry.text];
    return {
      text,
      tokens: unpacked(text.tokens, Uint32Array),
      model: [unpacked(text.model, Uint32Array), unpacked(text.model_p, Uint8Array)],
      proxy: [unpacked(entry.proxy, Uint32Array), unpacked(entry.proxy_p, Uint8Array)],
      bits: unpacked(entry.bits, Uint16Array),
      flags: unpacked(entry.flags, Uint8Array),
    };
  };
  const isOther = (flags) => (flags & SCORED) && !(flags & SAME);
  const differs = (entry) => {
    entry.differs ??= unpacked(entry.flags, Uint8Array).some(isOther);
    return entry.differs;
  };

  const chosen = () => {
    const cell = cells[`${splitMenu.value},${proxyMenu.value}`] ?? [];
    const some = orderMenu.value === "all"
      ? cell.slice().sort((a, b) => texts[a.text].sequence - texts[b.text].sequence)
      : cell.filter((entry) => entry.rank !== null);
    return only.checked ? some.filter(differs) : some;
  };

  const shade = (bits) => bits === NONE || bits < LEAST * BITS
    ? 0 : Math.max(1, Math.min(SHADES, Math.round(SHADES * Math.sqrt(bits / BITS))));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  const shown = (entry) => {
    const it = parts(entry);
    const { name, start, length } = it.text;
    const article = document.createElement("article");
    const heading = document.createElement("h3");
    const about = document.createElement("p");
    const pre = document.createElement("pre");
    const cut = it.tokens.length < length - (start ? 1 : 0)
      ? `; shown are tokens ${start} to ${start + it.tokens.length - 1} of ${length}` : "";
    heading.textContent = name;
    about.className = "note";
    about.textContent = `${entry.value.toFixed(4)} bits a scored position, ` +
      `${percent(entry.same)} same predictions${cut}`;
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", `${name}: arrow keys move from token to token`);
    it.tokens.forEach((token, at) => {
      const span = document.createElement("span");
      const scored = it.flags[at] & SCORED;
      span.textContent = pieces[token];
      span.dataset.at = at;
      if (scored && shade(it.bits[at])) span.className = `s${shade(it.bits[at])}`;
      if (isOther(it.flags[at])) span.classList.add("other");
      if (!scored) span.classList.add("unscored");
      pre.append(span);
      if (separate) pre.append(" ");
    });
    pre.it = it;
    article.append(heading, about, pre);
    return article;
  };

  const show = () => {
    const some = chosen();
    first = Math.max(0, Math.min(first, some.length - 1));
    const page = some.slice(first, first + PAGE);
    list.replaceChildren(...page.map(shown));
    said.textContent = some.length
      ? `${first + 1} to ${first + page.length} of ${some.length}`
      : only.checked ? "None: they predict the same everywhere." : "None.";
    told.textContent = some.length ? "Point at a token: what both predict stands here." : "";
  };

  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const line = (name, text) => {
    const row = document.createElement("div");
    const label = document.createElement("b");
    const value = document.createElement("bdi"); // whatever way its letters are written
    label.textContent = `${name}: `;
    value.textContent = text;
    row.append(label, value);
    return row;
  };
  const tops = ([codes, shares], at) => Array.from({ length: top }, (_, n) => top * at + n)
    .filter((place, n) => n === 0 || pieces[codes[place]] !== "")
    .map((place) => `${visible(pieces[codes[place]])} ${shares[place] ? `${shares[place]} %` : "<1 %"}`)
    .join(", ");
  const tell = (span) => {
    const { text, tokens, model, proxy, bits, flags } = span.parentElement.it;
    const at = Number(span.dataset.at);
    const right = (flag) => flags[at] & flag ? "right" : "wrong";
    const how = flags[at] & SCORED
      ? `; the model is ${right(MODEL_RIGHT)}, the proxy ${right(PROXY_RIGHT)}` : "; not scored";
    const here = line("here", `${visible(pieces[tokens[at]])} (token ${text.start + at})`);
    told.replaceChildren(...(bits[at] === NONE
      ? [here, line("prediction", "none")]
      : [here, line("model", tops(model, at)), line("proxy", tops(proxy, at)),
        line("divergence", `${(bits[at] / BITS).toFixed(4)} bits${how}`)]));
  };

  list.addEventListener("mouseover", (event) => {
    if (event.target.dataset.at) tell(event.target);
  });
  list.addEventListener("keydown", (event) => { // arrows move through the tokens of a text
    const pre = event.target.closest("pre");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!pre || !step) return;
    const spans = pre.querySelectorAll("span");
    let now = Number(pre.dataset.now ?? (step > 0 ? -1 : spans.length)) + step;
    while (event.shiftKey && spans[now] && !spans[now].classList.contains("other")) now += step;
    event.preventDefault();
    if (!spans[now]) return;
    pre.querySelector(".now")?.classList.remove("now");
    pre.dataset.now = now;
    spans[now].classList.add("now");
    tell(spans[now]);
  });
  for (const menu of [splitMenu, proxyMenu, orderMenu, only]) {
    menu.addEventListener("change", () => { first = 0; show(); });
  }
  const turn = (step) => () => { if (first + step < chosen().length) { first += step; show(); } };
  part("next").addEventListener("click", turn(PAGE));
  part("back").addEventListener("click", turn(-PAGE));
  show();
})();
