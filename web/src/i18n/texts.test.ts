import { expect, test } from "vitest";
import chat from "./chat";
import compare from "./compare";
import models from "./models";
import settings from "./settings";
import shell from "./shell";
import ui from "./ui";

const areas: [string, { en: Record<string, string>; zh: Record<string, string> }][] = Object.entries({
  chat, compare, models, settings, shell, ui,
});

const values = (text: string | undefined): string[] => (text?.match(/{{\w+}}/g) ?? []).sort();

test.each(areas)("%s has every text in both languages, with the same values in it", (_, { en, zh }) => {
  expect(Object.keys(zh).sort()).toEqual(Object.keys(en).sort());
  for (const key of Object.keys(en)) {
    expect(en[key], key).toBeTruthy();
    expect(zh[key], key).toBeTruthy();
    expect([key, ...values(zh[key])]).toEqual([key, ...values(en[key])]);
  }
});
