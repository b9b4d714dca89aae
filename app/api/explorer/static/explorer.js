// Draws every chart of a page from the options that stand beside it, in the colours of the page.
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const drawn = [];

  function axis(colours, given) {
    return {
      ...given,
      axisLabel: { color: colours.ink, hideOverlap: true, ...given.axisLabel },
      nameTextStyle: { color: colours.ink, ...given.nameTextStyle },
      axisLine: { lineStyle: { color: colours.line } },
      splitLine: { lineStyle: { color: colours.line } },
    };
  }

  function inked(options) {
    const style = getComputedStyle(document.documentElement);
    const colours = { ink: style.getPropertyValue("--quiet").trim(), line: style.getPropertyValue("--line").trim() };
    const legend = options.legend ? { ...options.legend, textStyle: { color: colours.ink } } : undefined;
    return {
      ...options,
      animation: !still.matches,
      legend,
      xAxis: axis(colours, options.xAxis),
      yAxis: axis(colours, options.yAxis),
      ...(options.visualMap ? { visualMap: { ...options.visualMap, textStyle: { color: colours.ink } } } : {}),
    };
  }

  for (const place of document.querySelectorAll("[data-options]")) {
    const options = JSON.parse(document.getElementById(place.dataset.options).textContent);
    // A bar needs a line of its own; the rest is what stands around them.
    if (place.dataset.rows) place.style.height = `max(18rem, ${1.3 * place.dataset.rows + 4}rem)`;
    const chart = echarts.init(place, null, { renderer: "canvas" });
    chart.setOption(inked(options));
    drawn.push({ chart, options });
  }
  window.addEventListener("resize", () => drawn.forEach(({ chart }) => chart.resize()));
  dark.addEventListener("change", () => drawn.forEach(({ chart, options }) => chart.setOption(inked(options), true)));
})();
