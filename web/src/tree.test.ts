// @vitest-environment node

import { describe, expect, it } from "vitest";

import type { Message } from "./api/types";
import { leafBelow, path, siblings, titleOf, withMessage } from "./tree";

function message(id: string, parent: string | null, created: number): Message {
  const role = id.startsWith("q") ? "user" : "assistant";
  return {
    id, parent, role, created, text: id, pictures: [], model: null, status: "done", error: null, stats: null,
  };
}

// q1 ─ a1 ─ q2 ─ a2
//    │    └ q3 ─ a3, a4
//    └ a5
const tree = [
  message("q1", null, 1), message("a1", "q1", 2), message("q2", "a1", 3), message("a2", "q2", 4),
  message("q3", "a1", 5), message("a3", "q3", 6), message("a4", "q3", 7), message("a5", "q1", 8),
];
const ids = (messages: Message[]) => messages.map(({ id }) => id);

describe("path", () => {
  it("leads from the first question to the leaf", () => {
    expect(ids(path(tree, "a2"))).toEqual(["q1", "a1", "q2", "a2"]);
    expect(ids(path(tree, "a3"))).toEqual(["q1", "a1", "q3", "a3"]);
  });

  it("takes the newest end where the leaf is not known", () => {
    expect(ids(path(tree, null))).toEqual(["q1", "a5"]);
    expect(ids(path(tree, "gone"))).toEqual(["q1", "a5"]);
    expect(path([], null)).toEqual([]);
  });

  it("ends with a circle, which no server should send", () => {
    expect(ids(path([message("q1", "a1", 1), message("a1", "q1", 2)], "a1"))).toEqual(["q1", "a1"]);
  });
});

describe("siblings", () => {
  it("are the versions of a question, or of an answer, oldest first", () => {
    expect(ids(siblings(tree, "q3"))).toEqual(["q2", "q3"]);
    expect(ids(siblings(tree.toReversed(), "a4"))).toEqual(["a3", "a4"]);
    expect(ids(siblings(tree, "q1"))).toEqual(["q1"]);
    expect(siblings(tree, "gone")).toEqual([]);
  });
});

describe("leafBelow", () => {
  it("follows the newest branch", () => {
    expect(leafBelow(tree, "a1")).toBe("a4");
    expect(leafBelow(tree, "q2")).toBe("a2");
    expect(leafBelow(tree, "a5")).toBe("a5");
  });
});

describe("withMessage", () => {
  it("replaces by id, or adds, and leaves what it was given", () => {
    const changed = { ...message("a1", "q1", 2), text: "new" };
    expect(withMessage(tree, changed)[1]?.text).toBe("new");
    expect(withMessage(tree, message("a6", "q1", 9))).toHaveLength(9);
    expect(tree[1]?.text).toBe("a1");
  });
});

describe("titleOf", () => {
  it("is the first line that says something, cut to 60 characters", () => {
    expect(titleOf("\n  Why is the sky blue?  \nAnd the sea?")).toBe("Why is the sky blue?");
    expect(titleOf("字".repeat(60))).toBe("字".repeat(60));
    expect(titleOf("字".repeat(61))).toBe(`${"字".repeat(59)}…`);
    expect([...titleOf("👍".repeat(70))]).toHaveLength(60);
    expect(titleOf(" \n ")).toBe("");
  });
});
