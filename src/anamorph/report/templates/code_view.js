// Functions as text. Only the few on show are in the page, so that thousands cost nothing.
(() => {
  "use strict";
  const box = document.getElementById("code-view");
  if (!box) return;
  const { splits, proxies, functions, top } = JSON.parse(
    document.getElementById("code-view-data").textContent);
  const PAGE = 5;
  const [splitMenu, proxyMenu, only] = ["split", "proxy", "only"].map(
    (name) => document.getElementById(`code-view-${name}`));
  const [list, said, hover] = ["list", "said", "hover"].map(
    (name) => document.getElementById(`code-view-${name}`));
  const fill = (menu, names) => names.forEach((name, number) => menu.add(new Option(name, number)));
  fill(splitMenu, splits);
  fill(proxyMenu, proxies);
  let first = 0;

  // Positions at which the likeliest tokens differ.
  const differs = (f, proxy, at) => f.characters.model[at * top] !== f.characters.proxies[proxy][at * top];
  const prepared = (f) => {
    f.characters ??= {
      text: Array.from(f.text),
      model: Array.from(f.model),
      proxies: f.proxies.map((p) => Array.from(p.proxy)),
    };
    f.differences ??= f.proxies.map((_, proxy) =>
      f.characters.text.reduce((sum, _, at) => sum + differs(f, proxy, at), 0));
    return f;
  };

  const chosen = () => {
    const split = Number(splitMenu.value);
    const proxy = Number(proxyMenu.value);
    const some = functions.filter((f) => f.split === split).map(prepared);
    return only.checked
      ? some.filter((f) => f.differences[proxy]).sort((a, b) => b.differences[proxy] - a.differences[proxy])
      : some;
  };

  const show = () => {
    const proxy = Number(proxyMenu.value);
    const some = chosen();
    first = Math.max(0, Math.min(first, some.length - 1));
    const page = some.slice(first, first + PAGE);
    list.replaceChildren(...page.map((f) => {
      const pre = document.createElement("pre");
      pre.tabIndex = 0;
      f.characters.text.forEach((character, at) => {
        const span = document.createElement("span");
        span.textContent = character;
        span.dataset.at = at;
        const shade = f.proxies[proxy].shades[at];
        if (shade !== "0") span.className = `s${shade}`;
        if (differs(f, proxy, at)) span.classList.add("other");
        pre.append(span);
      });
      pre.function = f;
      return pre;
    }));
    said.textContent = some.length
      ? `${first + 1} to ${first + page.length} of ${some.length}`
      : "None: they predict the same everywhere.";
    hover.replaceChildren();
  };

  const visible = (c) => ({ " ": "space", "\n": "new line", "\t": "tab" })[c] ?? c;
  const tell = (span) => {
    const f = span.parentElement.function;
    const at = Number(span.dataset.at);
    const proxy = Number(proxyMenu.value);
    const tops = (characters, digits) => Array.from({ length: top }, (_, n) => {
      const place = at * top + n;
      return `${visible(characters[place])} ${Number(digits.slice(2 * place, 2 * place + 2))} %`;
    }).join(", ");
    const line = (name, text) => {
      const row = document.createElement("div");
      const label = document.createElement("b");
      label.textContent = `${name}: `;
      row.append(label, text);
      return row;
    };
    hover.replaceChildren(
      line("here", visible(f.characters.text[at])),
      line("model", tops(f.characters.model, f.model_p)),
      line("proxy", tops(f.characters.proxies[proxy], f.proxies[proxy].proxy_p)));
  };

  list.addEventListener("mouseover", (event) => {
    if (event.target.dataset.at) tell(event.target);
  });
  list.addEventListener("keydown", (event) => { // arrows move through a function's characters
    const pre = event.target.closest("pre");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!pre || !step) return;
    const now = Math.max(0, Math.min(pre.children.length - 1, Number(pre.dataset.now ?? -1) + step));
    pre.querySelector(".now")?.classList.remove("now");
    pre.dataset.now = now;
    pre.children[now].classList.add("now");
    tell(pre.children[now]);
    event.preventDefault();
  });
  for (const menu of [splitMenu, proxyMenu, only]) {
    menu.addEventListener("change", () => { first = 0; show(); });
  }
  const turn = (step) => () => { if (first + step < chosen().length) { first += step; show(); } };
  document.getElementById("code-view-next").addEventListener("click", turn(PAGE));
  document.getElementById("code-view-back").addEventListener("click", turn(-PAGE));
  show();
})();
