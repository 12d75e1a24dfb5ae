// @vitest-environment node

import { describe, expect, it } from "vitest";

import { blocksOf } from "./blocks";

describe("blocksOf", () => {
  it("cuts between paragraphs", () => {
    expect(blocksOf("# One\n\ntwo\nthree\n\n\nfour")).toEqual(["# One\n", "two\nthree\n\n", "four"]);
    expect(blocksOf("")).toEqual([]);
  });

  it.each([
    "```py\na = 1\n\nb = 2\n```", // closed
    "```py\na = 1\n\nb = 2", // still open
    "~~~\n\n```\n\n~~~",
    "````md\n```\n\n```\n````",
    "1. one\n\n2. two\n\n   more of two\n\n3. three",
    "- one\n\n- two",
    "$$\na\n\nb\n$$",
    "[^1] is told\n\n[^1]: here",
  ])("leaves %j whole", (text) => {
    expect(blocksOf(text)).toEqual([text]);
  });

  it("goes on after a fence", () => {
    expect(blocksOf("```\na\n\nb\n```\n\nText\n\n- item")).toEqual(["```\na\n\nb\n```\n", "Text\n", "- item"]);
  });

  it("keeps the first blocks as they are while the text grows", () => {
    const text = "One.\n\nTwo `three`.\n\n```js\nlet x;\n\nlet y;\n```\n\nEnd.";
    for (let length = 1; length <= text.length; length++) {
      const grown = blocksOf(text.slice(0, length)).slice(0, -1);
      expect(blocksOf(text).slice(0, grown.length).map((each) => each.trimEnd())).toEqual(grown.map((each) => each.trimEnd()));
    }
  });

  it("loses nothing", () => {
    const text = "a\n\nb\n\n```\n\n```\n\n* c\n\nd";
    expect(blocksOf(text).join("\n")).toBe(text);
  });
});
