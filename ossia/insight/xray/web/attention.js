// Attention: heads by what they look at, the mixture of each layer, and maps of single heads.

function attentionSection(into) {
  const some = LOOKS.map((name, look) => [look, name]).filter(([look]) => look > 0 || traces.some((trace) => trace.hasSinks));
  let look = some[0][0];
  let head = null;
  let largest = 1;
  const bodies = traces.map((trace) => {
    const view = heat(trace.layers, trace.heads,
      (layer, h) => trace.head(layer, h, look) / largest,
      (layer, h) => `layer ${layer}, head ${h}: ${percent(trace.head(layer, h, look))} of its attention on ${LOOKS[look]}`,
      {
        ratio: 0.5, cell: [5, 16], label: `Heads of ${trace.name} by what they look at: rows are layers, columns are heads`,
        hint: "rows: layers · columns: heads · choose a head for its map",
        pick: (layer, h) => pick(layer, h), mark: () => head,
      });
    const list = el("ol", { class: "heads" });
    return { trace, view, list };
  });
  const difference = sameShape() ? heat(traces[0].layers, traces[0].heads,
    (layer, h) => 0.5 + (traces[1].head(layer, h, look) - traces[0].head(layer, h, look)) / 2,
    (layer, h) => `layer ${layer}, head ${h}: ${percent(traces[0].head(layer, h, look))} in A, ${percent(traces[1].head(layer, h, look))} in B`,
    { ratio: 0.5, cell: [5, 16], ramps: DIVERGING, label: "The difference between both", hint: "blue: more in B · orange: less",
      pick: (layer, h) => pick(layer, h), mark: () => head }) : null;
  const maps = el("div", { class: "maps" });
  const explain = el("p", { class: "note hint" });

  function update() {
    explain.textContent = EXPLAINED[look];
    largest = Math.max(0.01, ...traces.map((trace) => headsBy(trace, look)[0][2]));
    for (const { trace, view, list } of bodies) {
      view.draw();
      list.replaceChildren(...headsBy(trace, look).slice(0, 8).map(([layer, h, mass]) => el("li", {},
        el("button", { type: "button", click: () => pick(layer, h) }, `${layer}.${h}`),
        stack(LOOKS.map((_, n) => trace.head(layer, h, n))), el("span", { class: "share" }, percent(mass)))));
    }
    difference?.draw();
  }

  function pick(layer, h) {
    head = [layer, h];
    maps.replaceChildren(sides(traces, (trace) => mapView(trace, layer, h)));
    update();
  }

  into.append(choice("What heads look at", some, look, (value) => {
    look = value;
    update();
  }), explain);
  into.append(sides(traces, (trace) => {
    const { view, list } = bodies.find((body) => body.trace === trace);
    return el("div", { class: "split" }, el("div", {}, el("h3", {}, "Every head"), view),
      el("div", {}, el("h3", {}, "Those that look there most"), list));
  }));
  if (difference) into.append(el("h3", {}, "B minus A"), difference);
  into.append(el("div", { class: traces.length > 1 ? "" : "split half" }, maps, el("div", {}, el("h3", {}, "What each layer looks at"),
    legend(LOOKS.slice(0, 6).map((name, n) => [`look${n}`, name])), sides(traces, layerBars))));
  const kept = traces[0].mapHeads.map(([layer, h]) => [layer, h, traces[0].head(layer, h, 3)]);
  kept.sort((one, other) => other[2] - one[2]);
  pick(kept[0][0], kept[0][1]); // a head that looks at the previous token: a map to read at once
}

// [layer, head, mass] of every head, the largest mass first.
function headsBy(trace, look) {
  const heads = range(trace.layers).flatMap((layer) => range(trace.heads).map((h) => [layer, h, trace.head(layer, h, look)]));
  return heads.sort((one, other) => other[2] - one[2]);
}

const EXPLAINED = [
  "The sink is a learned logit that joins each head's softmax and adds nothing: attention that goes nowhere.",
  "The first token often serves as a sink in models that have none.",
  "The query's own position.",
  "The position before the query.",
  `Other positions fewer than ${traces[0].near} tokens back: what a sliding layer can see.`,
  `Positions ${traces[0].near} tokens back or further: what only full attention reaches.`,
  "Tokens that followed an earlier occurrence of the same token: what induction heads copy from. They are part of the other kinds too.",
];

const sameShape = () => traces.length === 2 && traces[0].layers === traces[1].layers && traces[0].heads === traces[1].heads;

function layerBars(trace) {
  const rows = trace.layerMass().map((masses, layer) => el("div", { class: "row" }, el("span", {}, layer), stack(masses)));
  return el("div", { class: "bars" }, ...rows);
}

function mapView(trace, layer, h) {
  const cell = trace.layers > layer && trace.heads > h ? trace.map(layer, h) : null;
  const masses = trace.layers > layer && trace.heads > h ? LOOKS.map((_, n) => trace.head(layer, h, n)) : null;
  const title = el("h3", {}, `Head ${h} of layer ${layer}`);
  if (!masses) return el("div", {}, title, el("p", { class: "note" }, "This model does not have this head."));
  const bar = [stack(masses), legendOf(masses)];
  if (!cell) return el("div", {}, title, ...bar, el("p", { class: "note" }, `This page has no room for its map: ossia xray --maps ${layer}.${h} puts it in.`));
  const size = trace.mapSize;
  const names = (n) => {
    const words = trace.pieces.slice(n * size, Math.min((n + 1) * size, n * size + 4)).map(visible).join("");
    return size > 1 ? `“${words}…” (${n * size} to ${Math.min(trace.tokens, (n + 1) * size) - 1})` : `“${words}” (${n})`;
  };
  const most = Math.max(...range(trace.mapCells).flatMap((row) => range(row + 1).map((column) => cell(row, column)))) || 1;
  const view = heat(trace.mapCells, trace.mapCells, (row, column) => (column > row ? null : Math.sqrt(cell(row, column) / most)),
    (row, column) => (column > row ? "later tokens cannot be seen" : `${names(row)} looks at ${names(column)}: ${small(cell(row, column))}`),
    { square: true, label: `Attention map of layer ${layer}, head ${h}: rows are queries, columns are keys`,
      hint: `rows: queries · columns: keys · strongest: ${percent(most)}${size > 1 ? ` · a cell is the largest share among ${size} × ${size} tokens` : ""}` });
  return el("div", { class: "map" }, title, ...bar, view);
}
