// @vitest-environment node

import { describe, expect, it } from "vitest";

import { withFormulas } from "./formulas";

describe("withFormulas", () => {
  it.each([
    ["so \\(a+b\\).", "so $$a+b$$."],
    ["so $a+b$, $c$", "so $$a+b$$, $$c$$"],
    ["\\[a+b\\]", "$$\na+b\n$$\n"],
    ["- then\n  \\[\n  a\n  \\]", "- then\n  $$\n  a\n  $$\n"],
    ["$$x = 1$$", "$$\nx = 1\n$$\n"],
    ["$$ x\n= 1 $$", "$$\nx\n= 1\n$$\n"],
  ])("%j becomes %j", (text, expected) => {
    expect(withFormulas(text)).toBe(expected);
  });

  it.each([
    "from $5 to $10", "$5-$10", "a \\$b$ c", "`$a$` and `\\(b\\)`", "```\n$a$ \\[b\\]\n```", "```sh\necho $HOME $PATH$", "x$y$z",
  ])("%j stays", (text) => {
    expect(withFormulas(text)).toBe(text);
  });
});
