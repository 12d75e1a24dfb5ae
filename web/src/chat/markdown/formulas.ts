// Models write formulas as \( \), \[ \], $ $ and $$ $$, while the parser wants $$ within a line, or
// on lines of its own for a formula that stands alone. A single $ counts where no space is inside
// of it and no digit after it, as Pandoc has it: "$5 and $10" stays as it is.

const CODE = /^ {0,3}(`{3,}|~{3,})[^\n]*\n[^]*?(?:^ {0,3}\1[`~]*[^\S\n]*$|$(?![^]))|(`+)(?!`)[^]*?[^`]\2(?!`)/m;
const BRACKETS = /^([ \t]*)\\\[([^]+?)\\\]|\\\[([^]+?)\\\]/gm;
const LINES = /^([ \t]*)\$\$([^$]+?)\$\$[^\S\n]*$/gm;
const PARENTHESES = /\\\((.+?)\\\)/g;
const DOLLAR = /(?<![\\$\w])\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s\\$])\$(?![\d$])/g;

/** Markdown whose formulas are as the parser wants them; what is code stays as it is. */
export function withFormulas(text: string): string {
  if (!/[$]|\\[([]/.test(text)) return text;
  let rest = text;
  let done = "";
  for (let code = CODE.exec(rest); code; code = CODE.exec(rest)) {
    done += convert(rest.slice(0, code.index)) + code[0];
    rest = rest.slice(code.index + code[0].length);
  }
  return done + convert(rest);
}

function convert(text: string): string {
  return text
    .replace(LINES, (_, indent: string, formula: string) => alone(indent, formula))
    .replace(BRACKETS, (_, indent: string | undefined, first: string | undefined, other: string) => (
      (indent === undefined ? "\n" : "") + alone(indent ?? "", first ?? other)))
    .replace(PARENTHESES, (_, formula: string) => `$$${formula.trim()}$$`)
    .replace(DOLLAR, (_, formula: string) => `$$${formula}$$`);
}

function alone(indent: string, formula: string): string {
  return ["$$", ...formula.trim().split("\n").map((line) => line.trim()), "$$"]
    .map((line) => indent + line).join("\n") + "\n";
}
