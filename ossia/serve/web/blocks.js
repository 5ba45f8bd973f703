// Markdown's blocks, as CommonMark and GFM read them: text -> DOM, again and again while it grows.

import { codeBlock } from "./code.js";
import { el } from "./dom.js";
import { inline } from "./inline.js";
import { maths } from "./maths.js";

const DEEPEST = 24; // of quotes and lists within each other; deeper ones are paragraphs
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MATHS_MOST_LINES = 100;

// Show `text` in `into`. What an earlier call showed there stays where its source is the same, so
// a growing text costs its last block, and a selection in what came before survives.
export function renderMarkdown(into, text) {
  const shown = into.shownBlocks ?? [];
  const fresh = [];
  const lines = text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n");
  for (const { source, build } of blocks(lines, 0)) {
    const old = shown[fresh.length];
    if (old?.source === source) fresh.push(old);
    else {
      const node = build();
      if (old) old.node.replaceWith(node);
      else into.append(node);
      fresh.push({ source, node });
    }
  }
  for (const { node } of shown.slice(fresh.length)) node.remove();
  into.shownBlocks = fresh;
}

// The nodes of blocks; in a tight list, paragraphs are texts alone.
function built(parsed, tight = false) {
  return parsed.map(({ build, paragraph }) => {
    if (!tight || !paragraph) return build();
    const fragment = document.createDocumentFragment();
    for (const node of inline(paragraph)) fragment.append(node);
    return fragment;
  });
}

// {source, build, paragraph, spaced} of each block: what builds it, the text of a paragraph, and
// whether a blank line is between it and the block before.
function blocks(lines, depth) {
  const found = [];
  let end = 0;
  for (let at = skipBlank(lines, 0); at < lines.length; at = skipBlank(lines, end)) {
    const spaced = found.length > 0 && at > end;
    const [next, build, paragraph] = block(lines, at, depth);
    found.push({ source: lines.slice(at, next).join("\n"), build, paragraph, spaced });
    end = next;
  }
  return found;
}

const READERS = [fence, mathsBlock, heading, rule, quote, listBlock, table, indented];

// Where the block at a line ends, and what builds it.
function block(lines, at, depth) {
  for (const reader of READERS) {
    const found = reader(lines, at, depth);
    if (found) return found;
  }
  return paragraph(lines, at, depth);
}

function fence(lines, at) {
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, indent, mark, info] = found;
  const closing = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).map((line) => dedent(line, indent.length));
  return [Math.min(end + 1, lines.length), () => codeBlock(code.join("\n"), info.trim())];
}

function mathsBlock(lines, at) {
  const first = lines[at].trim();
  const [open, close] = first.startsWith("$$") ? ["$$", "$$"] : ["\\[", "\\]"];
  if (!first.startsWith(open)) return null;
  const most = Math.min(lines.length, at + MATHS_MOST_LINES);
  for (let end = at; end < most && lines[end].trim(); end += 1) {
    const last = end === at ? first.slice(2) : lines[end].trimEnd();
    if (!last.endsWith(close)) continue;
    const inner = [first, ...lines.slice(at + 1, end + 1)].join("\n").trimEnd().slice(2, -2);
    return inner.includes(close) ? null : [end + 1, () => maths(inner, true)];
  }
  return null;
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  // The title of the page is its h1, and who wrote a message an h2.
  const tag = `h${Math.min(found[1].length + 2, 6)}`;
  return [at + 1, () => el(tag, {}, inline(found[2] ?? ""))];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [at + 1, () => el("hr")] : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at]) || depth >= DEEPEST) return null;
  let end = at;
  const inside = [];
  while (end < lines.length) {
    const quoted = QUOTE.test(lines[end]);
    if (!quoted && (!lines[end].trim() || startsBlock(lines, end, depth, true))) break;
    inside.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return [end, () => el("blockquote", {}, built(blocks(inside, depth + 1)))];
}

function listBlock(lines, at, depth) {
  const first = depth < DEEPEST && ITEM.exec(lines[at]);
  if (!first) return null;
  const kind = first[2].at(-1);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const item = listItem(lines, end, found, depth);
    items.push(item);
    loose ||= item.parsed.some(({ spaced }) => spaced);
    end = item.end;
    const next = skipBlank(lines, end);
    const more = next < lines.length && ITEM.exec(lines[next])?.[2].at(-1) === kind;
    if (next > end && more) loose = true;
    if (more) end = next;
  }
  const ordered = kind === "." || kind === ")";
  const start = parseInt(first[2], 10);
  return [end, () => {
    const list = el(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? start : null });
    for (const { task, parsed } of items) list.append(listEntry(task, built(parsed, !loose)));
    return list;
  }];
}

// One item: where it ends, its blocks, and the mark of a task before them.
function listItem(lines, at, [, indent, marker, space = "", rest = ""], depth) {
  const pad = space.length > 4 || !rest ? 1 : space.length;
  const width = indent.length + marker.length + pad;
  const inside = [" ".repeat(Math.max(0, space.length - pad)) + rest];
  let end = at + 1;
  while (end < lines.length) {
    const line = lines[end];
    if (!line.trim()) {
      const next = skipBlank(lines, end);
      if (next >= lines.length || indentOf(lines[next]) < width) break;
      inside.push("");
    } else if (belongs(line, indent.length, width)) inside.push(dedent(line, width));
    else if (startsBlock(lines, end, depth, true) || !inside.at(-1)) break;
    else inside.push(line.trimStart());
    end += 1;
  }
  const task = /^\[([ xX])\] +/.exec(inside[0]);
  if (task) inside[0] = inside[0].slice(task[0].length);
  return { end, task: task?.[1], parsed: blocks(inside, depth + 1) };
}

// Within an item is what is indented to its text. Models indent bullets in numbered items by two.
function belongs(line, outer, width) {
  const indent = indentOf(line);
  return indent >= width || (indent >= outer + 2 && /^[-+*] /.test(line.trimStart()));
}

function listEntry(task, content) {
  if (task === undefined) return el("li", {}, content);
  const done = task !== " ";
  const label = done ? "done" : "to do";
  const box = el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": label });
  return el("li", { class: "task" }, box, content);
}

function table(lines, at, depth) {
  if (!isTable(lines, at)) return null;
  const sides = cells(lines[at + 1]).map(alignment);
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end, depth)) end += 1;
  return [end, () => {
    const row = (tag, line) => {
      const found = cells(line).slice(0, sides.length); // and no empty ones: they could be millions
      return el("tr", {}, found.map((cell, n) => el(tag, { class: sides[n] }, inline(cell))));
    };
    const body = lines.slice(at + 2, end).map((line) => row("td", line));
    const head = el("thead", {}, row("th", lines[at]));
    return el("div", { class: "wide" }, el("table", {}, head, el("tbody", {}, body)));
  }];
}

function isTable(lines, at) {
  const next = lines[at + 1];
  if (!next || !lines[at].includes("|") || !next.includes("-") || !TABLE_RULE.test(next)) return false;
  return cells(lines[at]).length === cells(next).length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignment(cell) {
  if (!cell.endsWith(":")) return null;
  return cell.startsWith(":") ? "centre" : "right";
}

function indented(lines, at) {
  if (indentOf(lines[at]) < 4) return null;
  let end = at;
  while (end < lines.length && (!lines[end].trim() || indentOf(lines[end]) >= 4)) end += 1;
  while (!lines[end - 1].trim()) end -= 1;
  const code = lines.slice(at, end).map((line) => line.slice(4));
  return [end, () => codeBlock(code.join("\n"), "")];
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim()) {
    const underline = /^ {0,3}(=+|-+)[ \t]*$/.exec(lines[end]);
    if (underline) {
      const tag = underline[1][0] === "=" ? "h3" : "h4";
      const title = joined(lines.slice(at, end));
      return [end + 1, () => el(tag, {}, inline(title))];
    }
    if (startsBlock(lines, end, depth)) break;
    end += 1;
  }
  const text = joined(lines.slice(at, end));
  return [end, () => el("p", {}, inline(text)), text];
}

function joined(lines) {
  return lines.map((line) => line.trimStart()).join("\n").trimEnd();
}

// Whether a line ends the paragraph before it, which is within a quote or item that it is not in.
// A number other than 1 begins no list within a paragraph: it may be a year.
function startsBlock(lines, at, depth, outside = false) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth < DEEPEST && QUOTE.test(line)) return true;
  const item = depth < DEEPEST && ITEM.exec(line);
  if (item && (outside || (item[4] && /^([-+*]|1[.)])$/.test(item[2])))) return true;
  return isTable(lines, at) || mathsBlock(lines, at) !== null;
}

function skipBlank(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at;
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function dedent(line, width) {
  return line.slice(Math.min(width, indentOf(line)));
}
