// Cuts Markdown into blocks that can be parsed by themselves, so that of an answer that grows only
// the last one is parsed again. Where a cut might change the meaning there is none.

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const LIST_ITEM = /^\s{0,3}([-*+]|\d{1,9}[.)])(\s|$)/;
const DEFINITION = /^ {0,3}\[[^\]]+\]:\s/m;

export function blocksOf(text: string): string[] {
  if (DEFINITION.test(text)) return [text]; // links and footnotes are told of elsewhere
  const blocks: string[] = [];
  let block: string[] = [];
  let isOpen: Opened = null;
  let isAfterBlank = false;
  for (const line of text.split("\n")) {
    if (isOpen === null && isAfterBlank && block.length > 0 && !goesOn(block, line)) {
      blocks.push(block.join("\n"));
      block = [];
    }
    isOpen = after(isOpen, line);
    const isBlank = line.trim() === "";
    isAfterBlank = isOpen === null && isBlank;
    if (!isBlank || block.length > 0) block.push(line);
  }
  if (block.length > 0) blocks.push(block.join("\n"));
  return blocks;
}

/** What a line stands in: the marks of a fence, "$$", or nothing that goes over blank lines. */
type Opened = string | null;

function after(open: Opened, line: string): Opened {
  const [, marks = "", info = ""] = FENCE.exec(line.trimStart()) ?? [];
  if (open === null) {
    // Backquotes in the info of a backquote fence: it is code within a line.
    if (marks && !(marks.startsWith("`") && info.includes("`"))) return marks;
    return isMathBorder(line) ? "$$" : null;
  }
  if (open === "$$") return line.trimEnd().endsWith("$$") ? null : open;
  return marks.startsWith(open) && !info.trim() ? null : open;
}

/** Opens a formula that does not end on the same line. */
function isMathBorder(line: string): boolean {
  const trimmed = line.trim();
  return trimmed.startsWith("$$") && trimmed.indexOf("$$", 2) < 0;
}

/** Whether a line after a blank one may belong to what is before it. */
function goesOn(block: readonly string[], line: string): boolean {
  if (line.trim() === "" || /^(\s{2}|\t)/.test(line)) return true;
  const isList = LIST_ITEM.test(block.find((each) => each.trim() !== "") ?? "");
  return isList && LIST_ITEM.test(line);
}
