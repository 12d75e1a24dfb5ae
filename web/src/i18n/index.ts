import i18next from "i18next";
import { initReactI18next } from "react-i18next";
import type { Language } from "../api/types";
import chat from "./chat";
import compare from "./compare";
import models from "./models";
import settings from "./settings";
import shell from "./shell";
import ui from "./ui";

// Every area has a file of its own, which exports by default {en: {...}, zh: {...}} with the same
// keys; its name is the namespace: t("chat:send").
const areas = { ui, chat, compare, shell, models, settings };

type Areas = typeof areas;

declare module "i18next" {
  interface CustomTypeOptions {
    defaultNS: ["ui", "chat", "compare", "shell", "models", "settings"];
    resources: { [Area in keyof Areas]: Areas[Area]["en"] };
  }
}

function resources(language: Language) {
  return Object.fromEntries(Object.entries(areas).map(([name, texts]) => [name, texts[language]]));
}

/** The language that the browser asks for. */
export function browserLanguage(): Language {
  const wanted = navigator.languages.find((tag) => /^(en|zh)\b/i.test(tag)) ?? "en";
  return wanted.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function startTexts(language: Language): void {
  void i18next.use(initReactI18next).init({
    lng: language,
    fallbackLng: "en",
    ns: Object.keys(areas),
    defaultNS: "ui",
    resources: { en: resources("en"), zh: resources("zh") },
    interpolation: { escapeValue: false }, // React escapes
    initAsync: false,
  });
  showLanguage(language);
}

export function changeLanguage(language: Language): void {
  void i18next.changeLanguage(language);
  showLanguage(language);
}

/** For screen readers, fonts and hyphenation. */
function showLanguage(language: Language): void {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}
