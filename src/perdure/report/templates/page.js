// Unpacks plotly from #plotly and draws the figures in #charts with the colours of the current theme. No network, no state.
(async () => {
  "use strict";
  const figures = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // "var(--x)" under a key named *color* becomes the page's colour; text elsewhere is never touched.
  const themed = (value, css, coloured = false) => {
    if (typeof value === "string") {
      const name = coloured && /^var\((--[\w-]+)\)$/.exec(value);
      return name ? css.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, css, coloured));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, css, coloured || /color/i.test(k))]));
  };

  const axis = (given) => ({
    automargin: true, fixedrange: true, gridcolor: "var(--line)", linecolor: "var(--line)", tickcolor: "var(--line)",
    autotickangles: [0, -35, -90], ticklabeloverflow: "allow",
    ...given, title: { standoff: 10, font: { size: 12, color: "var(--muted)" }, ...(given.title || {}) },
  });

  const layout = (figure) => {
    const full = {
      font: { family: "system-ui, sans-serif", size: 13, color: "var(--ink)" },
      paper_bgcolor: "var(--paper)", plot_bgcolor: "var(--paper)",
      margin: { l: 8, r: 24, t: 16, b: 8 }, height: figure.height, dragmode: false,
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
      ...figure.layout,
    };
    for (const key of Object.keys(full)) if (/^[xy]axis\d*$/.test(key)) full[key] = axis(full[key]);
    return full;
  };

  const draw = () => {
    const css = getComputedStyle(document.documentElement);
    for (const [id, figure] of Object.entries(figures)) {
      Plotly.react(id, themed(figure.data, css), themed(layout(figure), css), { displayModeBar: false, responsive: true });
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  };

  // The page's policy knows the hash of the unpacked text, so it may run.
  const unpacked = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  if (typeof DecompressionStream === "undefined") {
    document.getElementById("undrawn").hidden = false;
    return;
  }
  const library = document.createElement("script");
  library.textContent = await unpacked(document.getElementById("plotly").textContent);
  document.head.append(library);
  dark.addEventListener("change", draw);
  draw();
})();
