// The logit lens: what each layer would have predicted, over the text and around one token.

const SPAN = 9; // positions in the table

function lensSection(into) {
  const seen = traces.filter((trace) => trace.lensAt.length);
  if (!seen.length) return into.remove();
  const tables = new Map(seen.map((trace) => [trace, el("div", { class: "wide", tabindex: "0" })]));
  const shade = (rank) => 1 - Math.min(1, Math.log10(rank) / 3);
  const over = (trace) => heat(trace.layers + 1, trace.lensAt.length,
    (row, n) => shade(trace.lensRank[trace.layers - row][n]),
    (row, n) => lensReading(trace, trace.layers - row, n),
    { ratio: 0.3, cell: [6, 18], label: "The place that each layer gives to the model's prediction",
      hint: "rows: layers, the last on top · columns: positions · strongest: first place, palest: 1,000th", pick: (_, n) => fill(trace, n) });
  const middles = new Map(); // the position in the middle of each table
  function fill(trace, n) {
    middles.set(trace, n);
    tables.get(trace).replaceChildren(lensTable(trace, n, shade));
  }
  into.append(sides(seen, over), el("h3", {}, "Around the chosen token"), sides(seen, (trace) => tables.get(trace)));
  const follow = () => seen.forEach((trace) => fill(trace, nearest(trace.lensAt, chosen.token - 1)));
  chosen.changed.push(follow);
  redraws.push(() => middles.forEach((n, trace) => fill(trace, n)));
  follow();
}

function nearest(places, wanted) {
  let best = 0;
  places.forEach((place, n) => {
    if (Math.abs(place - wanted) < Math.abs(places[best] - wanted)) best = n;
  });
  return best;
}

function lensReading(trace, layer, n) {
  const at = trace.lensAt[n];
  const name = layer ? `after layer ${layer - 1}` : "the embedding";
  return `${name}, after “${visible(trace.pieces[at])}” (${at}): expects “${visible(trace.word(trace.lensIds[layer][n]))}”; the model's choice has rank ${trace.lensRank[layer][n].toLocaleString()}`;
}

function lensTable(trace, middle, shade) {
  const first = Math.max(0, Math.min(trace.lensAt.length - SPAN, middle - Math.floor(SPAN / 2)));
  const columns = range(Math.min(SPAN, trace.lensAt.length)).map((n) => first + n);
  const head = el("tr", {}, el("th", {}, "after"), ...columns.map((n) => el("th", { scope: "col", class: n === middle ? "now" : null }, visible(trace.pieces[trace.lensAt[n]]))));
  const rows = range(trace.layers + 1).reverse().map((layer) => el("tr", {}, el("th", { scope: "row" }, layer ? `layer ${layer - 1}` : "embedding"),
    ...columns.map((n) => {
      const rgb = colour(shade(trace.lensRank[layer][n]));
      const light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
      const style = { background: css(rgb), color: light > 0.55 ? "#14171b" : "#fbfbf9" };
      return el("td", { style, title: lensReading(trace, layer, n) }, visible(trace.word(trace.lensIds[layer][n])));
    })));
  return el("table", { class: "lens" }, el("thead", {}, head), el("tbody", {}, ...rows));
}
