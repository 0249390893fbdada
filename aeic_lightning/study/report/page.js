"use strict";
(async () => {
  // plotly.js, the plots and the captions of pictures are gzip in base64; plotly.js runs as a script element's own text.
  const unpacked = (id) => {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);

  const plots = JSON.parse(await unpacked("plots")), comparisons = JSON.parse(await unpacked("comparisons"));
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    displayModeBar: touch ? false : "hover", toImageButtonOptions: { format: "svg" },
  };
  const chosen = {};  // plot -> name of its variant
  // Plots are in the colours of a light page; on a dark one ink and lines change, and those of the curves stay.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const DARK = { "#1c1f23": "#e6e8eb", "#6b7280": "#a3abb5", "#e5e7eb": "#333a42", "#fff": "#16191d" };
  const themed = (given, light = !dark.matches) => light ? structuredClone(given) : JSON.parse(
    JSON.stringify(given).replace(/"(#1c1f23|#6b7280|#e5e7eb|#fff)"/g, (_, colour) => `"${DARK[colour]}"`));

  const draw = (id, width = null) => {  // with a width: on paper
    const given = plots[id], figure = given.variants ? given.variants[chosen[id]] : given;
    const plot = document.getElementById(id);
    plot.closest("figure").hidden = !figure;  // a tap is of one side only
    if (!figure) { Plotly.purge(plot); return; }
    // A finger that drags scrolls the page; a mouse zooms into the plot.
    const [data, look] = [figure.data, figure.layout].map((part) => themed(part, width ? true : undefined));
    const layout = { ...look, dragmode: touch ? false : "zoom", autosize: !width, ...(width ? { width } : {}) };
    return Plotly.react(plot, data, layout, { ...config, toImageButtonOptions: { format: "svg", filename: id } });
  };

  for (const select of document.querySelectorAll("select[data-plots]")) {
    const change = () => {
      for (const id of select.dataset.plots.split(" ")) { chosen[id] = select.value; draw(id); }
    };
    for (const id of select.dataset.plots.split(" ")) chosen[id] = select.value;
    select.addEventListener("change", change);
  }
  // A plot in a folded part has no width yet: it is drawn when the part opens, or is printed.
  const drawWithin = (part) => {
    for (const plot of part.querySelectorAll(".plot")) if (!plot.closest("details:not([open])")) draw(plot.id);
  };
  drawWithin(document);
  const drawn = () => [...document.querySelectorAll(".js-plotly-plot")];
  dark.addEventListener("change", () => { for (const plot of drawn()) draw(plot.id); });
  const parts = document.querySelectorAll("details.part");
  for (const part of parts) part.addEventListener("toggle", () => { if (part.open) drawWithin(part); });
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  const plotsOf = (set) => [...document.querySelectorAll(`#${set} .plot.js-plotly-plot`)];
  const overRate = (plot) => plots[plot.id].data !== undefined;

  for (const legend of document.querySelectorAll(".legend")) {
    for (const button of legend.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", shown);
        for (const plot of plotsOf(legend.dataset.set).filter(overRate)) {
          const traces = plot.data.flatMap((t, i) => (unescaped(t.legendgroup) === button.dataset.curve ? [i] : []));
          if (traces.length) Plotly.restyle(plot, { visible: shown }, traces);
        }
      });
    }
  }
  // Names in plots are escaped, since plotly reads HTML; a button's attribute is the name itself.
  function unescaped(text) { return new DOMParser().parseFromString(text ?? "", "text/html").body.textContent; }

  for (const box of document.querySelectorAll(".log-rate")) {
    box.addEventListener("change", () => {
      for (const plot of plotsOf(box.dataset.set).filter(overRate)) {
        const ticks = plots[plot.id].layout.xaxis;
        Plotly.relayout(plot, {
          "xaxis.type": box.checked ? "log" : "linear", "xaxis.autorange": true,
          "xaxis.tickvals": box.checked ? ticks.tickvals ?? null : null, "xaxis.ticktext": box.checked ? ticks.ticktext ?? null : null,
          "xaxis.tickmode": box.checked && ticks.tickvals ? "array" : "auto",
        });
      }
    });
  }

  for (const box of document.querySelectorAll(".compare")) {
    const images = comparisons[box.dataset.set], find = (name) => box.querySelector(name);
    const [image, left, right, range, stage] = [".image", ".left", ".right", "input", ".stage"].map(find);
    const views = () => images[image.selectedIndex].views;
    const show = () => {
      for (const [side, select] of [["left", left], ["right", right]]) {
        const view = views()[Math.max(0, select.selectedIndex)];
        const picture = find(`.${side}-picture`);
        // A small picture is not blown up to the width of the page.
        if (side === "right") picture.onload = () => { stage.style.maxWidth = `${Math.max(320, Math.min(860, 2 * picture.naturalWidth))}px`; };
        picture.src = pictures[view.picture];
        picture.alt = `${image.value}, ${view.label}`;
        find(`.${side}-said`).textContent = view.said ? `${view.label}: ${view.said}` : view.label;
      }
    };
    const fill = () => {
      const kept = [left.value, right.value], [first, second] = images[image.selectedIndex].start ?? [0, 1];
      for (const select of [left, right]) select.replaceChildren(...views().map((view) => new Option(view.label)));
      const labels = views().map((view) => view.label);
      left.selectedIndex = labels.includes(kept[0]) ? labels.indexOf(kept[0]) : first;
      right.selectedIndex = labels.includes(kept[1]) ? labels.indexOf(kept[1]) : Math.min(second, labels.length - 1);
      show();
    };
    image.addEventListener("change", fill);
    left.addEventListener("change", show);
    right.addEventListener("change", show);
    range.addEventListener("input", () => stage.style.setProperty("--at", `${range.value / 10}%`));
    fill();
  }

  // Plots have the width of the screen, and paper another: two columns of A4, or one.
  addEventListener("beforeprint", () => {
    const folded = [...parts].filter((part) => !part.open);
    for (const part of folded) part.open = true;
    for (const part of folded) drawWithin(part);
    for (const plot of drawn()) {
      const width = plot.closest(".single") ? 490 : 330;
      dark.matches ? draw(plot.id, width) : Plotly.relayout(plot, { autosize: false, width });
    }
  });
  addEventListener("afterprint", () => {
    for (const plot of drawn()) dark.matches ? draw(plot.id) : Plotly.relayout(plot, { autosize: true, width: null });
  });
  document.documentElement.dataset.drawn = "true";
})();
