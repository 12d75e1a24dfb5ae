import { expect, test } from "vitest";
import { groupByDay } from "./groups";

const now = new Date(2026, 10, 23, 9, 30);
const item = (title: string, ...when: [number, number, number, number?]) => {
  const seconds = new Date(...(when as [number, number, number])).getTime() / 1000;
  return { id: title, title, created: seconds, updated: seconds };
};

test("a list is cut at midnight, after a week, and by months", () => {
  const list = [
    item("a", 2026, 10, 23, 9), item("b", 2026, 10, 23, 0), item("c", 2026, 10, 22, 23), item("d", 2026, 10, 16, 0),
    item("e", 2026, 10, 15, 23), item("f", 2026, 10, 2), item("g", 2026, 9, 30), item("h", 2025, 9, 30),
  ];
  const cut = groupByDay(list, now, "en").map(({ name, label, items }) => (
    [name ?? label, items.map(({ id }) => id).join("")]));
  expect(cut).toEqual([
    ["today", "ab"], ["yesterday", "c"], ["week", "d"], ["November", "ef"], ["October", "g"], ["October 2025", "h"],
  ]);
  expect(groupByDay([item("h", 2025, 9, 30)], now, "zh")[0]?.label).toBe("2025年10月");
});
