import { expect, test } from "vitest";
import { readNumber } from "./number";

const limits = { min: 0, max: 2 };

test.each([
  ["", null, null], ["  ", null, null], ["0", 0, null], ["0.7", 0.7, null], [" 2 ", 2, null], ["０．７", 0.7, null],
  ["1e0", 1, null], ["abc", null, "notNumber"], ["1,5", null, "notNumber"], ["Infinity", null, "notNumber"],
  ["-0.1", null, "tooSmall"], ["2.1", null, "tooLarge"],
])("%j is read as %j, with the fault %j", (text, value, fault) => {
  expect(readNumber(text, limits)).toEqual({ value, fault });
});

test("whole numbers", () => {
  expect(readNumber("1.5", { whole: true }).fault).toBe("notWhole");
  expect(readNumber("40", { whole: true }).value).toBe(40);
});
