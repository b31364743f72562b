// Draws every figure from the specification that stands beside it. Colours are CSS variables, so
// light, dark and print need no second drawing; only a change of panels in a row does.
(() => {
  "use strict";
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const { config, light } = parse("vega-config");
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

  // Menus stand where the reader has set them.
  const keepChoices = (spec, view) => {
    for (const parameter of spec.params ?? []) {
      if (parameter.bind && parameter.name !== "pick") parameter.value = view.signal(parameter.name);
    }
  };

  // The expression interpreter needs no eval, which the page's security policy forbids.
  const embed = (box, spec, config) => window.vegaEmbed(
    box, spec, { actions: false, renderer: "svg", ast: true, mode: "vega-lite", config });

  const draw = async (box) => {
    const { spec, columns: data } = parse(box.dataset.spec);
    spec.datasets = { table: records(data) };
    const across = panels(box, spec);
    const before = views.get(box);
    if (before && before.across === across) return;
    if (across) spec.columns = across;
    if (before) keepChoices(spec, before.view);
    try {
      if (before) before.view.finalize();
      const legend = { ...config.legend, ...(box.clientWidth < 640 ? { columns: 2 } : {}) };
      const { view } = await embed(box, spec, { ...config, legend });
      views.set(box, { view, across });
      box.dataset.state = "drawn";
    } catch (error) {
      box.dataset.state = "failed";
      box.textContent = "This figure could not be drawn here; " +
        "the run folder has it as a picture in figures/.";
      console.error(error);
    }
    box.parentElement.querySelector(".files").hidden = box.dataset.state !== "drawn";
  };

  // Files are made here, so that a page that was mailed alone has them too: on white, in light
  // colours, as wide as in figures/, with what is chosen on the page.
  const inLight = (value) => JSON.parse(JSON.stringify(value).replace(
    /var\(--([\w-]+)\)/g, (whole, name) => light[name] ?? whole));

  const chosenName = (figure, spec) => {
    const words = (spec.params ?? []).filter(
      ({ bind, value }) => bind?.input === "select" && value !== bind.options[0],
    ).map(({ bind, value }) => bind.labels[bind.options.indexOf(value)]);
    const slug = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}_]+/gu, "-");
    const name = [figure.id.replace("figure-", ""), ...words.map(slug)].join("-");
    return name.slice(0, 120).replace(/-+$/, "");
  };

  const made = async (figure, kind) => {
    const box = figure.querySelector(".chart");
    const { spec, columns: data } = parse(box.dataset.spec);
    keepChoices(spec, views.get(box).view);
    const still = { ...inLight(spec), datasets: { table: records(data) } };
    const { view } = await embed(
      document.createElement("div"), still, inLight({ ...config, background: "#ffffff" }));
    try {
      const blob = kind === "svg"
        ? new Blob([await view.toSVG()], { type: "image/svg+xml" })
        : await view.toCanvas(2).then((canvas) => new Promise((give) => canvas.toBlob(give)));
      return { blob, name: `${chosenName(figure, spec)}.${kind}` };
    } finally {
      view.finalize();
    }
  };

  const save = ({ blob, name }) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };

  document.addEventListener("click", async ({ target }) => {
    const figure = target.dataset?.kind && target.closest("figure");
    if (!figure) return;
    const said = figure.querySelector(".saved");
    said.textContent = "";
    try {
      const file = await made(figure, target.dataset.kind);
      save(file);
      said.textContent = `saved as ${file.name}`;
    } catch (error) {
      said.textContent = "could not be made here";
      console.error(error);
    }
  });

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
