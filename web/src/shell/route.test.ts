import { expect, test } from "vitest";
import { conversationHash, readRoute } from "./route";

test("addresses", () => {
  expect(readRoute("")).toEqual({ page: "chat", id: null });
  expect(readRoute("#/")).toEqual({ page: "chat", id: null });
  expect(readRoute("#/compare")).toEqual({ page: "compare", id: null });
  expect(readRoute("#/c/")).toEqual({ page: "chat", id: null });
  expect(readRoute(conversationHash("12-ab"))).toEqual({ page: "chat", id: "12-ab" });
  expect(readRoute(conversationHash(null))).toEqual({ page: "chat", id: null });
});
