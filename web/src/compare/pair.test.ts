import { describe, expect, it } from "vitest";

import type { Model } from "../api/types";
import { twoOf } from "./pair";

function model(id: string, sees: boolean, state = "loaded", served = true): Model {
  return { id, served, state, input_modalities: sees ? ["text", "image"] : ["text"] } as unknown as Model;
}

describe("twoOf", () => {
  const words = model("words", false);
  const eyes = model("eyes", true, "unloaded");
  const others = model("others", true, "unloaded");

  it("sets beside the chosen model one that can do the same", () => {
    expect(twoOf([words, eyes, others], "others")).toEqual(["others", "eyes"]);
    expect(twoOf([words, eyes], "eyes")).toEqual(["eyes", "words"]);
  });

  it("begins with the readiest where none is chosen, and takes none that is not served", () => {
    expect(twoOf([eyes, model("far", true, "absent", false), words], null)).toEqual(["words", "eyes"]);
  });

  it("compares a single model with itself", () => {
    expect(twoOf([eyes], "eyes")).toEqual(["eyes", "eyes"]);
    expect(twoOf([], null)).toEqual([null, null]);
  });
});
