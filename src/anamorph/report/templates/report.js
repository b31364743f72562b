// Draws every figure from the specification that stands beside it. Colours are CSS variables, so
// light, dark and print need no second drawing; only a change of panels in a row does.
(() => {
  "use strict";
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const config = parse("vega-config");
  const views = new Map();

  const panels = (box, spec) => {
    const panel = Number(box.dataset.panel);
    if (!panel || !spec.columns) return 0;
    return Math.max(1, Math.min(spec.columns, Math.floor((box.clientWidth - 50) / panel)));
  };

  // Data stand in the page by column, text as codes into its levels.
  const records = (columns) => {
    const names = Object.keys(columns);
    const values = names.map((name) => {
      const column = columns[name];
      return column.levels ? column.codes.map((code) => column.levels[code]) : column;
    });
    return (values[0] ?? []).map((_, row) =>
      Object.fromEntries(names.map((name, column) => [name, values[column][row]])));
  };

  const draw = async (box) => {
    const { spec, columns: data } = parse(box.dataset.spec);
    spec.datasets = { table: records(data) };
    const across = panels(box, spec);
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
      const legend = { ...config.legend, ...(box.clientWidth < 640 ? { columns: 2 } : {}) };
      const options = { actions: false, renderer: "svg", ast: true, mode: "vega-lite" };
      options.config = { ...config, legend };
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
