// The text: each token in the colour of what is measured at it, and all about the one chosen.

const SOFT = 0.72; // of the ramp: the text on it is to be read

// How a token may be coloured: [label, what it says, value of token t from 0 to 1 or null].
function colourings(trace) {
  const before = (values, t) => (t > 0 ? values[t - 1] : null);
  const layers = range(trace.layers);
  const found = {
    surprise: ["surprise", "stronger: the model did not expect it (−log p, up to 8 nats)", (t) => {
      const logprob = before(trace.logprob, t);
      return logprob === null ? null : -logprob / 8;
    }],
    entropy: ["entropy", "stronger: the model was unsure what comes here (up to 6 nats)", (t) => {
      const entropy = before(trace.entropy, t);
      return entropy === null ? null : entropy / 6;
    }],
    rank: ["rank", "stronger: far down the list of likely tokens (log scale, to 10,000)", (t) => {
      const rank = before(trace.rank, t);
      return rank ? Math.log10(rank) / 4 : null;
    }],
  };
  const mass = (look) => (t) => mean(layers.map((layer) => trace.at(layer, t, look)));
  if (trace.hasSinks) found.sink = ["sink", "stronger: its attention goes to the sinks", mass(0)];
  found.first = ["first token", "stronger: its attention goes to the first token", mass(1)];
  found.far = ["beyond", `stronger: its attention goes ${trace.near} tokens back or further`, mass(5)];
  if (trace.lensAt.length) {
    const decided = new Map(trace.lensAt.map((at, n) => [at, decidedAt(trace, n)]));
    found.decided = ["decided late", "stronger: the model's choice came first only in the last layers", (t) => {
      const layer = decided.get(t - 1);
      return layer === undefined ? null : layer / trace.layers;
    }];
  }
  for (const [name, kl] of Object.entries(trace.differences)) {
    found[name] = [name, `stronger: ${name} change what the model expects here (KL up to 0.1 nats)`, (t) => {
      const value = before(kl, t);
      return value === null ? null : value / 0.1;
    }];
  }
  return found;
}

// The number of layers after which the lens at its n-th position first shows the model's choice.
function decidedAt(trace, n) {
  return trace.lensRank.findIndex((row) => row[n] === 1);
}

function textSection(into) {
  const modes = colourings(traces[0]);
  const options = Object.entries(modes).map(([key, [label]]) => [key, label]);
  if (sameText) options.push(["against", "A against B"]);
  const hint = el("p", { class: "note hint" });
  const views = traces.map((trace) => textView(trace));
  const detail = el("aside", { class: "detail", "aria-live": "polite", "aria-label": "The chosen token" });
  let mode = sameText ? "against" : "surprise";

  function paint() {
    views.forEach((view, n) => {
      const own = colourings(traces[n])[mode]?.[2];
      const signed = mode === "against" ? (t) => against(t) : null;
      view.paint(signed ?? own ?? (() => null), signed !== null);
    });
    hint.textContent = mode === "against" ? "blue: B expects it more than A does; orange: less (up to 2 nats)" : modes[mode][1];
  }

  function against(t) {
    if (t === 0) return null;
    const [a, b] = traces.map((trace) => trace.logprob[t - 1]);
    return a === null || b === null ? null : 0.5 + (b - a) / 4;
  }

  function show(trace, t) {
    views.forEach((view, n) => view.choose(sameText || traces[n] === trace ? t : null));
    const about = sameText ? traces : [trace];
    detail.replaceChildren(...about.map((one) => tokenDetail(one, t)));
    chosen.token = t;
    chosen.trace = trace;
    chosen.changed.forEach((changed) => changed());
  }

  views.forEach((view) => (view.show = show));
  const chooser = choice("Colour the text by", options, mode, (value) => {
    mode = value;
    paint();
  });
  const texts = traces.length > 1 && !sameText ? sides(traces, (trace) => views[trace.side === "A" ? 0 : 1].box) : views[0].box;
  into.append(chooser, hint, el("div", { class: "reader" }, texts, detail));
  paint();
  redraws.push(paint);
  show(traces[0], firstShown(traces[0]));
}

const chosen = { token: 0, trace: traces[0], changed: [] };

// The token worth showing first: in the second half, where the model was least sure what comes.
function firstShown(trace) {
  const half = Math.floor(trace.shown / 2);
  let place = half;
  for (let t = half; t < trace.shown - 1; t += 1) if (trace.entropy[t] > trace.entropy[place]) place = t;
  return Math.min(trace.shown - 1, place + 1);
}

function textView(trace) {
  const spans = trace.pieces.map((piece, t) => {
    const broken = piece.replaceAll("\n", "↵\n");
    return el("span", { class: "tok", "data-t": t }, broken === "" ? "\u200b" : broken);
  });
  const more = trace.tokens > trace.shown ? el("p", { class: "note" }, `The page shows the first ${trace.shown.toLocaleString()} of ${trace.tokens.toLocaleString()} tokens.`) : null;
  const box = el("div", { class: "text", tabindex: "0", role: "region", "aria-label": "The text, token by token" }, ...spans, more);
  const view = { box, current: null, pinned: false };
  const tokenOf = (event) => {
    const t = event.target.dataset?.t;
    return t === undefined ? null : Number(t);
  };
  box.addEventListener("pointerover", (event) => {
    const t = tokenOf(event);
    if (t !== null && !view.pinned) view.show(trace, t);
  });
  box.addEventListener("click", (event) => {
    const t = tokenOf(event);
    if (t === null) return;
    view.pinned = !(view.pinned && view.current === t);
    view.show(trace, t);
    box.classList.toggle("pinned", view.pinned);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    view.pinned = true;
    view.show(trace, Math.min(spans.length - 1, Math.max(0, (view.current ?? 0) + step)));
    spans[view.current].scrollIntoView({ block: "nearest" });
  });
  view.choose = (t) => {
    if (view.current !== null) spans[view.current].classList.remove("chosen");
    view.current = t;
    if (t !== null) spans[t].classList.add("chosen");
  };
  view.paint = (value, signed) => {
    spans.forEach((span, t) => {
      const shade = value(t);
      if (shade === null) {
        span.style.background = span.style.color = "";
        return;
      }
      const rgb = colour(signed ? shade : SOFT * Math.min(1, Math.max(0, shade)), signed ? DIVERGING : RAMPS);
      const light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
      span.style.background = css(rgb);
      span.style.color = light > 0.55 ? "#14171b" : "#fbfbf9";
    });
  };
  return view;
}

// All about token t: how it was predicted, what the layers made of it and what is expected next.
function tokenDetail(trace, t) {
  const parts = [el("header", {},
    traces.length > 1 ? el("b", { class: "letter" }, trace.side) : null,
    el("b", { class: "word" }, visible(trace.word(trace.ids[t]))),
    el("span", {}, `token ${t} · id ${trace.ids[t]}`))];
  if (t > 0 && trace.logprob[t - 1] !== null) {
    const share = Math.exp(trace.logprob[t - 1]);
    parts.push(el("p", {}, `Expected with ${small(share)}, rank ${trace.rank[t - 1].toLocaleString()}; entropy ${trace.entropy[t - 1].toFixed(2)} nats.`));
    parts.push(alternatives(trace, t - 1, trace.ids[t]));
  } else {
    parts.push(el("p", {}, "The first token: nothing predicts it."));
  }
  const place = t > 0 ? trace.lensAt.indexOf(t - 1) : -1;
  if (place >= 0) {
    const layer = decidedAt(trace, place);
    parts.push(el("h4", {}, "Logit lens before it"), el("p", {}, layer ? `The model's choice comes first after layer ${layer - 1}.` : "The embedding already ranks the model's choice first."));
  }
  const masses = LOOKS.slice(0, 6).map((_, look) => mean(range(trace.layers).map((layer) => trace.at(layer, t, look))));
  parts.push(el("h4", {}, "Its attention"), stack(masses), legendOf(masses));
  if (trace.experts) {
    const rows = trace.routed.map((layer) => el("span", {}, el("b", {}, layer), [...trace.chosenBy(layer, t)].join(" ")));
    parts.push(el("h4", {}, "Its experts, layer by layer"), el("div", { class: "routes" }, ...rows));
  }
  parts.push(el("h4", {}, "What it expects next"), alternatives(trace, t, trace.ids[t + 1]));
  return el("div", { class: "token" }, ...parts);
}

function legendOf(masses) {
  const named = LOOKS.slice(0, 6).map((name, look) => [`look${look}`, `${name} ${percent(masses[look])}`]);
  return legend(named.filter((_, look) => masses[look] >= 0.005));
}

// The likeliest tokens after token t, the one that came marked.
function alternatives(trace, t, came) {
  const rows = trace.top[t].map((id, n) => {
    const share = trace.shares[t][n];
    return el("li", { class: id === came ? "came" : null },
      el("span", { class: "bar", style: { width: `${share}%` } }),
      el("span", { class: "word" }, visible(trace.word(id))),
      el("span", { class: "share" }, `${share.toFixed(1)} %`));
  });
  return el("ol", { class: "alternatives" }, ...rows);
}
