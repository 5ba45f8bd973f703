// Blocks of code, and their highlighting: a few kinds of tokens, found by one expression a language.

import { copyButton, el } from "./dom.js";

const HIGHLIGHTED = 50_000; // characters; longer code is shown plain

const words = (text) => new Set(text.split(" "));

const STRINGS = String.raw`"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?`;
const SLASHES = String.raw`\/\/.*|\/\*[^]*?(?:\*\/|$)`;

const C_WORDS =
  "auto break case catch char class const constexpr continue default delete do double else enum " +
  "explicit extern false float for friend goto if inline int long mutable namespace new noexcept " +
  "nullptr operator override private protected public register return short signed sizeof static " +
  "struct switch template this throw true try typedef typename union unsigned using virtual void " +
  "volatile while bool";
const JS_WORDS =
  "abstract any as async await boolean break case catch class const continue debugger default " +
  "delete do else enum export extends false finally for from function get if implements import in " +
  "instanceof interface let new null number of private public readonly return set static string " +
  "super switch this throw true try type typeof undefined var void while yield";
const JAVA_WORDS =
  "abstract boolean break byte case catch char class const continue data def default do double else " +
  "enum extends false final finally float for fun if implements import in instanceof int interface " +
  "internal let long namespace new null object open override package private protected public " +
  "record return sealed short static string super switch synchronized this throw throws true try " +
  "using val var void volatile when while func guard nil self struct extension protocol init";

const LANGUAGES = {
  python: {
    comment: "#.*",
    string: String.raw`[rbfuRBFU]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRINGS})`,
    words: words(
      "False None True and as assert async await break case class continue def del elif else " +
        "except finally for from global if import in is lambda match nonlocal not or pass raise " +
        "return self try while with yield",
    ),
  },
  javascript: {
    comment: SLASHES,
    string: "`(?:[^`\\\\]|\\\\[^])*`?|" + STRINGS,
    words: words(JS_WORDS),
  },
  c: { comment: `${SLASHES}|^[ \\t]*#[ \\t]*\\w+`, string: STRINGS, words: words(C_WORDS) },
  java: { comment: SLASHES, string: `"""[^]*?(?:"""|$)|${STRINGS}`, words: words(JAVA_WORDS) },
  rust: {
    comment: SLASHES,
    string: String.raw`"(?:[^"\\]|\\[^])*"?|'(?:[^'\\\n]|\\.)'`,
    words: words(
      "as async await bool break char const continue crate dyn else enum extern f32 f64 false fn " +
        "for i32 i64 if impl in let loop match mod move mut pub ref return self Self static str " +
        "struct super trait true type u8 u32 u64 unsafe use usize where while",
    ),
  },
  go: {
    comment: SLASHES,
    string: "`[^`]*`?|" + STRINGS,
    words: words(
      "bool break byte case chan const continue default defer else error fallthrough false float64 " +
        "for func go goto if import int int64 interface map nil package range return rune select " +
        "string struct switch true type uint var",
    ),
  },
  bash: {
    comment: String.raw`(?<![^\s;])#.*`,
    string: String.raw`"(?:[^"\\]|\\[^])*"?|'[^']*'?`,
    words: words(
      "case cd do done echo elif else esac exit export fi for function if in local return set " +
        "shift source sudo test then until while",
    ),
  },
  sql: {
    comment: String.raw`--.*|\/\*[^]*?(?:\*\/|$)`,
    string: "'(?:[^']|'')*'?",
    words: words(
      "add all alter and as asc between by case check column constraint create cross default " +
        "delete desc distinct drop else end exists foreign from full group having if in index " +
        "inner insert into is join key left like limit not null offset on or order outer over " +
        "partition primary references right select set table then union unique update using " +
        "values view when where with",
    ),
    anyCase: true,
  },
  css: { comment: String.raw`\/\*[^]*?(?:\*\/|$)`, string: STRINGS, words: words("important") },
  json: { comment: "(?!)", string: STRINGS, words: words("true false null") },
  yaml: { comment: String.raw`(?<!\S)#.*`, string: STRINGS, words: words("true false null yes no") },
  html: {
    comment: String.raw`<!--[^]*?(?:-->|$)`,
    string: STRINGS,
    words: words(""),
    name: String.raw`(?<=<\/?)[\w:-]+`,
  },
  diff: { comment: "^-.*", string: String.raw`^\+.*`, words: words(""), name: "^@@.*" },
};

const ALIASES = {
  python: "py python3 pycon ipython gdscript toml ini cfg r ruby rb perl makefile dockerfile",
  javascript: "js jsx ts tsx typescript mjs cjs",
  c: "cpp c++ cc h hpp cuda cu objc glsl metal zig",
  java: "kotlin kt scala csharp cs c# swift dart php groovy",
  rust: "rs",
  go: "golang",
  bash: "sh shell zsh console shell-session fish powershell",
  sql: "sqlite postgresql mysql psql",
  css: "scss less",
  json: "jsonc json5 jsonl ndjson",
  yaml: "yml",
  html: "xml svg vue xhtml",
  diff: "patch",
};

const NAMES = new Map(
  Object.entries(ALIASES).flatMap(([name, aliases]) => [
    [name, name],
    ...aliases.split(" ").map((alias) => [alias, name]),
  ]),
);

// A block of code with its language's name and a button that copies it.
export function codeBlock(code, info) {
  const name = info.split(/[\s{,]/)[0];
  const shown = el("code", {}, highlighted(code, name));
  const copy = copyButton("Copy this code", () => code);
  const bar = el("div", { class: "code-bar" }, el("span", {}, name || "text"), copy);
  const label = `${name} code`.trim();
  const scroller = el("pre", { tabindex: "0", role: "region", "aria-label": label }, shown);
  return el("div", { class: "code" }, bar, scroller);
}

// The nodes of code in a language; of one that is not known, its text alone.
export function highlighted(code, name) {
  const language = LANGUAGES[NAMES.get(name.toLowerCase())];
  if (!language || code.length > HIGHLIGHTED) return [code];
  const nodes = [];
  let at = 0;
  for (const found of code.matchAll(expressionOf(language))) {
    const kind = kindOf(found, language);
    if (!kind) continue;
    if (found.index > at) nodes.push(code.slice(at, found.index));
    nodes.push(el("span", { class: `t-${kind}` }, found[0]));
    at = found.index + found[0].length;
  }
  nodes.push(code.slice(at));
  return nodes;
}

function expressionOf(language) {
  const decimal = String.raw`\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?`;
  const number = String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|${decimal})[a-zA-Z]{0,3}\b`;
  language.expression ??= new RegExp(
    `(?<comment>${language.comment})|(?<string>${language.string})|(?<number>${number})|` +
      `(?<name>${language.name ?? "(?!)"})|(?<call>[A-Za-z_$][\\w$]*(?=\\())|[A-Za-z_$][\\w$]*`,
    "gm",
  );
  return language.expression;
}

function kindOf({ 0: text, groups }, language) {
  for (const kind of ["comment", "string", "number", "name"]) {
    if (groups[kind] !== undefined) return kind;
  }
  if (language.words.has(language.anyCase ? text.toLowerCase() : text)) return "word";
  return groups.call === undefined ? null : "call";
}
