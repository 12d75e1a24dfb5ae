import { expect, test } from "vitest";
import type { Message } from "./api/types";
import { fromMarkdown } from "./markdownFile";

const FILE = `# Two \\* two

## User

*[cat.png]*

What is it?

## tiny\\_model

A cat.

## Its name

Tom

## User

Thanks
`;

test("an export is read back: turns, names and headings of answers", () => {
  const made = fromMarkdown(FILE) as { title: string; leaf: string; messages: Message[] };
  expect(made.title).toBe("Two * two");
  expect(made.messages.map(({ role, model, text }) => [role, model, text])).toEqual([
    ["user", null, "*[cat.png]*\n\nWhat is it?"],
    ["assistant", "tiny_model", "A cat.\n\n## Its name\n\nTom"],
    ["user", null, "Thanks"],
  ]);
  expect(made.messages.map(({ parent }) => parent)).toEqual([null, made.messages[0]?.id, made.messages[1]?.id]);
  expect(made.leaf).toBe(made.messages[2]?.id);
});

test("other files are left to others", () => {
  expect(fromMarkdown('{"format": "shuzhai-conversation"}')).toBeNull();
  expect(fromMarkdown("# A page\n\nwithout a conversation")).toBeNull();
  expect(fromMarkdown("")).toBeNull();
});
