// The interactive figure of the results: which systems, which score, over the tasks or against a cost. Data comes with the page.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const plot = document.getElementById("explore-plot");
  const [views, shown] = document.querySelectorAll(".explore fieldset");
  const numbers = document.querySelector(".explore details table");
  const datasets = Object.keys(data);
  const first = data[datasets[0]][0];
  const scores = Object.keys(first.accuracy);
  const averages = Object.keys(first.accuracy[scores[0]]);
  const OVER = "tasks";
  const hidden = new Set();
  const chosen = {
    "data set": select("data set", datasets),
    score: select("score", scores, "class-incremental"),
    over: select("against", [OVER, ...Object.keys(first.costs)]),
    of: select("accuracy on", averages),
  };
  button("as in the paper's Table 1", views, () => {
    [chosen.score.value, chosen.over.value, chosen.of.value] = [scores[0], OVER, averages[1]];
    draw();
  });
  button("all systems", shown, () => choose(() => true));
  button("the paper's systems", shown, () => choose((system) => system.group === "paper"));
  button("systems in colour", shown, () => choose((system) => system.look.coloured));

  function element(kind, text, parent) {
    const made = document.createElement(kind);
    made.append(text);
    parent.append(made);
    return made;
  }

  function select(name, values, preset) {
    const label = element("label", `${name} `, views);
    const list = element("select", "", label);
    values.forEach((value) => list.add(new Option(value, value, false, value === preset)));
    list.addEventListener("change", draw);
    return list;
  }

  function button(text, parent, act) {
    const made = element("button", text, parent);
    made.type = "button";
    made.addEventListener("click", act);
  }

  const systems = () => data[chosen["data set"].value];

  function choose(wanted) {
    systems().forEach((system) => hidden[wanted(system) ? "delete" : "add"](system.name));
    draw();
  }

  // One box for each system, group by group; the line in front of its name is the legend.
  function listSystems() {
    shown.querySelectorAll("label, .group").forEach((old) => old.remove());
    let group = null;
    for (const system of systems()) {
      if (system.group !== group) {
        group = system.group;
        element("span", system.heading, shown).className = "group";
      }
      const label = element("label", "", shown);
      const box = element("input", "", label);
      box.type = "checkbox";
      box.checked = !hidden.has(system.name);
      box.addEventListener("change", () => {
        hidden[box.checked ? "delete" : "add"](system.name);
        draw(false);
      });
      const line = element("span", "", label);
      line.className = "line";
      line.style.borderTopColor = system.look.color;
      line.style.borderTopStyle = system.look.dash === "solid" ? "solid" : "dashed";
      label.append(` ${system.name}`);
    }
  }

  const percent = ([mean, half, n]) =>
    `${mean.toFixed(1)} %${half === null ? "" : ` ± ${half.toFixed(1)} (95 %)`}, ${n} seed${n > 1 ? "s" : ""}`;

  const found = (system) => system.accuracy[chosen.score.value][chosen.of.value];

  const asInThePaper = (system) =>
    chosen.score.value === scores[0] && chosen.of.value === averages[1] && system.published.length === found(system).length;

  function overTasks(system) {
    const points = found(system);
    const line = {
      name: system.name,
      x: points.map((_, task) => task + 1),
      y: points.map(([mean]) => mean),
      error_y: { type: "data", array: points.map(([, half]) => half ?? 0), thickness: 1, width: 3 },
      text: points.map(percent),
      hovertemplate: "task %{x}: %{text}",
      mode: "lines+markers",
      line: { color: system.look.color, dash: system.look.dash, width: 2 },
      marker: { symbol: system.look.symbol, size: 8, color: system.look.color },
      cliponaxis: false,
    };
    if (!asInThePaper(system)) return [line];
    const published = {
      name: `${system.name}, published`,
      x: line.x,
      y: system.published,
      hovertemplate: "task %{x}: %{y:.1f} % published",
      mode: "markers",
      marker: { symbol: `${system.look.symbol}-open`, size: 12, color: system.look.color, line: { width: 2 } },
      cliponaxis: false,
    };
    return [line, published];
  }

  const cost = (system) => system.costs[chosen.over.value][0];

  // Costs span decades, so their axis is logarithmic; what costs nothing stands at its left end, under a tick of its own.
  function costAxis(visible) {
    const positive = visible.map(cost).filter((one) => one > 0);
    const least = Math.min(...positive);
    const zero = least / 4;
    const ticks = [];
    for (let power = Math.floor(Math.log10(least)); 10 ** power <= Math.max(...positive) * 3; power += 1) ticks.push(10 ** power);
    const none = visible.some((system) => cost(system) === 0);
    const inside = ticks.filter((tick) => !none || tick > zero * 1.5);
    return {
      zero,
      axis: {
        type: "log",
        tickvals: none ? [zero, ...inside] : inside,
        ticktext: [...(none ? ["0"] : []), ...inside.map((tick) => tick.toLocaleString("en", { maximumSignificantDigits: 1 }))],
      },
    };
  }

  function againstCost(system, zero) {
    if (cost(system) === null) return [];
    const last = found(system).at(-1);
    return [
      {
        name: system.name,
        x: [cost(system) || zero],
        y: [last[0]],
        error_y: { type: "data", array: [last[1] ?? 0], thickness: 1, width: 3, color: system.look.color },
        text: [`${cost(system).toLocaleString("en", { maximumSignificantDigits: 4 })} ${chosen.over.value}: ${percent(last)}`],
        hovertemplate: "%{text}",
        mode: "markers",
        marker: { symbol: system.look.symbol, size: 13, color: system.look.color },
        cliponaxis: false,
      },
    ];
  }

  // The same numbers as a table, for readers who do not point at marks.
  function writeNumbers(visible, tasks) {
    const heads = tasks ? found(first).map((_, task) => `task ${task + 1}`) : [chosen.over.value, "accuracy at the end"];
    const cells = (system) => {
      if (!tasks) return cost(system) === null ? [] : [cost(system).toLocaleString("en"), percent(found(system).at(-1))];
      return found(system).map(([mean, half]) => `${mean.toFixed(1)}${half === null ? "" : ` ± ${half.toFixed(1)}`}`);
    };
    numbers.replaceChildren();
    const row = (kind, texts, part) => {
      const made = element("tr", "", part);
      texts.forEach((text, place) => {
        const cell = element(place ? kind : "th", text, made);
        if (cell.tagName === "TH") cell.scope = place || kind === "th" ? "col" : "row";
      });
    };
    row("th", ["system", ...heads], element("thead", "", numbers));
    const body = element("tbody", "", numbers);
    visible.forEach((system) => {
      row("td", [system.name, ...cells(system)], body);
      if (tasks && asInThePaper(system)) row("td", [`${system.name}, published`, ...system.published.map((one) => one.toFixed(1))], body);
    });
  }

  function draw(anew = true) {
    if (anew) listSystems();
    const tasks = chosen.over.value === OVER;
    const visible = systems().filter((system) => !hidden.has(system.name));
    const { zero, axis: log } = tasks ? { axis: { dtick: 1 } } : costAxis(visible);
    const upwards = [...visible].sort((one, other) => one.look.order - other.look.order); // what is in colour lies on top
    const traces = upwards.flatMap((system) => (tasks ? overTasks(system) : againstCost(system, zero)));
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--pst-color-border"), linecolor: colour("--pst-color-text-muted"), zeroline: false, automargin: true };
    const narrow = plot.clientWidth < 600;
    Plotly.react(
      plot,
      traces,
      {
        xaxis: { ...axis, ...log, title: { text: tasks ? "task" : chosen.over.value } },
        yaxis: { ...axis, title: { text: `${chosen.score.value} accuracy, %` } },
        font: { color: colour("--pst-color-text-base"), size: narrow ? 12 : 14 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { namelength: -1 },
        showlegend: false,
        autosize: true, // the style sheet says how high
        margin: { t: 40, r: 20, l: 50, b: 70 },
      },
      { displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
    );
    writeNumbers(visible, tasks);
  }

  draw();
  let size = [plot.clientWidth, plot.clientHeight].join();
  new ResizeObserver(() => {
    const now = [plot.clientWidth, plot.clientHeight].join();
    if (now === size) return;
    size = now;
    draw(false);
  }).observe(plot);
  new MutationObserver(() => draw(false)).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
