// The interactive figure of the results: which data set, which score, over the tasks or against a cost. Data comes with the page.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const plot = document.getElementById("explore-plot");
  const form = document.querySelector(".explore fieldset");
  const datasets = Object.keys(data);
  const first = data[datasets[0]][0];
  const scores = Object.keys(first.accuracy);
  const averages = Object.keys(first.accuracy[scores[0]]);
  const OVER = "tasks";
  const chosen = {
    "data set": select("data set", datasets),
    score: select("score", scores, "class-incremental"),
    over: select("against", [OVER, ...Object.keys(first.costs)]),
    of: select("accuracy on", averages),
  };

  function select(name, values, preset) {
    const label = document.createElement("label");
    const list = document.createElement("select");
    values.forEach((value) => list.add(new Option(value, value, false, value === preset)));
    label.append(`${name} `, list);
    form.append(label);
    list.addEventListener("change", draw);
    return list;
  }

  const percent = ([mean, half, n]) => `${mean.toFixed(1)} %${half === null ? "" : ` ± ${half.toFixed(1)} (95 %)`}, ${n} seed${n > 1 ? "s" : ""}`;

  function overTasks(system) {
    const found = system.accuracy[chosen.score.value][chosen.of.value];
    const line = {
      name: system.name,
      legendgroup: system.name,
      x: found.map((_, task) => task + 1),
      y: found.map(([mean]) => mean),
      error_y: { type: "data", array: found.map(([, half]) => half ?? 0), thickness: 1, width: 3 },
      text: found.map(percent),
      hovertemplate: "task %{x}: %{text}",
      mode: "lines+markers",
      line: { color: system.look.color, dash: system.look.dash, width: 2 },
      marker: { symbol: system.look.symbol, size: 8, color: system.look.color },
    };
    const asInThePaper = chosen.score.value === scores[0] && chosen.of.value === averages[1] && system.published.length === found.length;
    if (!asInThePaper) return [line];
    const published = {
      name: `${system.name}, published`,
      x: line.x,
      y: system.published,
      hovertemplate: "task %{x}: %{y:.1f} % published",
      mode: "markers",
      visible: "legendonly",
      marker: { symbol: `${system.look.symbol}-open`, size: 11, color: system.look.color },
    };
    return [line, published];
  }

  function againstCost(system) {
    const found = system.accuracy[chosen.score.value][chosen.of.value].at(-1);
    const [cost] = system.costs[chosen.over.value];
    if (cost === null) return [];
    return [
      {
        name: system.name,
        x: [cost],
        y: [found[0]],
        error_y: { type: "data", array: [found[1] ?? 0], thickness: 1, width: 3, color: system.look.color },
        text: [percent(found)],
        hovertemplate: `%{x:.4~g} ${chosen.over.value}: %{text}`,
        mode: "markers",
        marker: { symbol: system.look.symbol, size: 13, color: system.look.color },
      },
    ];
  }

  function draw() {
    const tasks = chosen.over.value === OVER;
    const traces = data[chosen["data set"].value].flatMap(tasks ? overTasks : againstCost);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ink = colour("--pst-color-text-base");
    const axis = { gridcolor: colour("--pst-color-border"), zeroline: false, automargin: true };
    const narrow = plot.clientWidth < 600;
    Plotly.react(
      plot,
      traces,
      {
        xaxis: { ...axis, title: { text: tasks ? "task" : chosen.over.value }, ...(tasks ? { dtick: 1 } : { rangemode: "tozero" }) },
        yaxis: { ...axis, title: { text: `${chosen.score.value} accuracy, %` } },
        font: { color: ink },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { namelength: -1 },
        legend: narrow ? { orientation: "h", y: -0.25 } : {},
        height: narrow ? 700 : 520,
        margin: { t: 40, r: 10 }, // the toolbar lies above the legend
      },
      { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
    );
  }

  draw();
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
