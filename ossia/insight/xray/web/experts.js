// Experts: their load, the routing along the text, and which of them fire together.

function expertsSection(into) {
  const routed = traces.filter((trace) => trace.experts);
  if (!routed.length) return into.remove();
  const load = (trace) => {
    const fair = (trace.tokens * trace.chosen) / trace.experts;
    return heat(trace.routed.length, trace.experts,
      (n, expert) => trace.load[trace.routed[n]][expert] / fair / 4,
      (n, expert) => {
        const uses = trace.load[trace.routed[n]][expert];
        return `layer ${trace.routed[n]}, expert ${expert}: ${uses.toLocaleString()} tokens, ${(uses / fair).toFixed(1)} times a fair share`;
      },
      { ratio: 0.35, cell: [6, 18], label: `Load of the experts of ${trace.name}: rows are layers, columns are experts`,
        hint: `rows: layers · columns: experts · strongest: four times a fair share of ${Math.round(fair).toLocaleString()} tokens` });
  };
  into.append(el("h3", {}, "Load"), sides(routed, load));
  into.append(el("h3", {}, "Imbalance"), sides(routed, imbalance));
  const body = el("div");
  const layers = routed[0].routed;
  const update = (layer) => body.replaceChildren(sides(routed, (trace) => layerOfExperts(trace, layer)));
  const first = layers[Math.floor(layers.length / 2)];
  into.append(el("h3", {}, "One layer closely ", layerSelect("Layer", layers, first, update)), body);
  update(first);
}

function imbalance(trace) {
  const rows = trace.routed.map((layer) => {
    const load = trace.load[layer];
    const total = load.reduce((sum, uses) => sum + uses, 0);
    const most = Math.max(...load);
    const idle = load.filter((uses) => !uses).length;
    const effective = Math.exp(-load.filter(Boolean).reduce((sum, uses) => sum + (uses / total) * Math.log(uses / total), 0));
    return el("tr", {}, ...[layer, load.indexOf(most), `${((most * trace.experts) / total).toFixed(1)} ×`, idle, effective.toFixed(1)].map((text) => el("td", {}, text)));
  });
  const head = ["layer", "busiest expert", "its load, of a fair share", "idle experts", "effective experts (e to the entropy)"];
  return el("div", { class: "wide scroll", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows)));
}

function layerOfExperts(trace, layer) {
  if (!trace.routed.includes(layer)) return el("p", { class: "note" }, "This model has no experts there.");
  const uses = (t, expert) => trace.chosenBy(layer, t).indexOf(expert);
  const strip = heat(trace.experts, trace.shown,
    (expert, t) => {
      const place = uses(t, expert);
      return place < 0 ? 0 : 1 - (0.6 * place) / trace.chosen;
    },
    (expert, t) => {
      const place = uses(t, expert);
      return `“${visible(trace.pieces[t])}” (${t}) ${place < 0 ? "does not choose" : "chooses"} expert ${expert}${place < 0 ? "" : `, as number ${place + 1}`}`;
    },
    { ratio: 0.3, cell: [2, 12], label: `Routing along the text in layer ${layer}: rows are experts, columns are tokens`,
      hint: "rows: experts · columns: tokens of the text · strongest: the first choice" });
  const kept = mean(range(trace.shown - 1).map((t) => {
    const here = new Set(trace.chosenBy(layer, t));
    return [...trace.chosenBy(layer, t + 1)].filter((expert) => here.has(expert)).length / trace.chosen;
  }));
  const pairs = together(trace, layer);
  const square = heat(trace.experts, trace.experts,
    (one, other) => (one === other ? null : Math.min(1, pairs.lift(one, other) / 4)),
    (one, other) => (one === other ? `expert ${one}` : `experts ${one} and ${other}: together ${pairs.count(one, other)} times, ${pairs.lift(one, other).toFixed(1)} times chance`),
    { square: true, label: `Which experts of layer ${layer} fire together`, hint: "strongest: four times as often as by chance" });
  const list = el("ol", { class: "pairs" }, ...pairs.top.map(([one, other, count, lift]) =>
    el("li", {}, el("b", {}, `${one} + ${other}`), ` ${count} times, ${lift.toFixed(1)} × chance`)));
  const change = trace.shown > 1 ? el("p", { class: "note" }, `From one token to the next, ${percent(kept)} of the experts stay; by chance it would be ${percent(trace.chosen / trace.experts)}.`) : null;
  const firing = trace.chosen > 1 ? el("div", { class: "split even" }, el("div", {}, el("h4", {}, "Fire together"), square), el("div", {}, el("h4", {}, "Most often together, by lift"), list)) : null;
  return el("div", {}, el("h4", {}, "Routing along the text"), strip, change, firing);
}

function together(trace, layer) {
  const size = trace.experts;
  const counts = new Uint32Array(size * size);
  for (let t = 0; t < trace.shown; t += 1) {
    const experts = trace.chosenBy(layer, t);
    for (const one of experts) for (const other of experts) counts[one * size + other] += 1;
  }
  const count = (one, other) => counts[one * size + other];
  const lift = (one, other) => {
    // A token that chooses one has K - 1 choices left among the E - 1 others.
    const chance = (count(one, one) * count(other, other) * (trace.chosen - 1) * size) / (trace.shown * trace.chosen * (size - 1));
    return chance ? count(one, other) / chance : 0;
  };
  const top = [];
  for (let one = 0; one < size; one += 1) {
    for (let other = 0; other < one; other += 1) {
      if (count(one, other) >= Math.max(3, trace.shown / 100)) top.push([other, one, count(one, other), lift(one, other)]);
    }
  }
  top.sort((a, b) => b[3] - a[3]);
  return { count, lift, top: top.slice(0, 8) };
}
