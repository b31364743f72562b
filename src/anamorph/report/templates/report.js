// Draws every figure from the specification that stands beside it. Colours are CSS variables, so
// light, dark and print need no second drawing; only a change of panels in a row does.
(() => {
  "use strict";
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const config = parse("vega-config");
  const views = new Map();

  const columns = (box, spec) => {
    const panel = Number(box.dataset.panel);
    if (!panel || !spec.columns) return 0;
    return Math.max(1, Math.min(spec.columns, Math.floor(box.clientWidth / panel)));
  };

  const draw = async (box) => {
    const spec = parse(box.dataset.spec);
    const across = columns(box, spec);
    const before = views.get(box);
    if (before && before.across === across) return;
    if (across) spec.columns = across;
    for (const parameter of spec.params ?? []) {
      if (before && parameter.bind && parameter.name !== "pick") {
        parameter.value = before.view.signal(parameter.name); // what the reader has chosen
      }
    }
    try {
      if (before) before.view.finalize();
      // The expression interpreter needs no eval, which the page's security policy forbids.
      const options = { actions: false, renderer: "svg", ast: true, config, mode: "vega-lite" };
      const { view } = await window.vegaEmbed(box, spec, options);
      views.set(box, { view, across });
      box.dataset.state = "drawn";
    } catch (error) {
      box.dataset.state = "failed";
      box.textContent = "This figure could not be drawn; its PNG and SVG are linked below.";
      console.error(error);
    }
  };

  const drawAll = async () => {
    for (const box of document.querySelectorAll(".chart")) {
      await draw(box);
      await new Promise((resolve) => setTimeout(resolve)); // lets the page answer in between
    }
    document.documentElement.dataset.state = "drawn";
  };

  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 200);
  });
  drawAll();
})();
