import { create } from "zustand";
import { api } from "../api/client";
import type { ChatSettings, Language } from "../api/types";
import { browserLanguage, changeLanguage } from "../i18n";

export type Theme = "system" | "light" | "dark";

const KEY = "shuzhai.preferences";

/** What this browser remembers. */
interface Kept {
  theme: Theme;
  language: Language;
  sidebarOpen: boolean; // where there is room for it; a phone has a drawer
}

interface Preferences extends Kept {
  defaults: ChatSettings; // of new conversations: the server keeps them
  areDefaultsKnown: boolean;
  set: (change: Partial<Kept>) => void;
  loadDefaults: () => Promise<void>;
  saveDefaults: (settings: ChatSettings) => Promise<void>;
}

export const NO_SETTINGS: ChatSettings = {
  model: null,
  system: null,
  sampling: {
    temperature: null,
    top_p: null,
    top_k: null,
    min_p: null,
    repetition_penalty: null,
    max_tokens: null,
    seed: null,
  },
};

function readKept(): Kept {
  const fresh: Kept = { theme: "system", language: browserLanguage(), sidebarOpen: true };
  try {
    return { ...fresh, ...(JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Kept>) };
  } catch {
    return fresh;
  }
}

export const usePreferences = create<Preferences>((set, get) => ({
  ...readKept(),
  defaults: NO_SETTINGS,
  areDefaultsKnown: false,

  set(change) {
    set(change);
    const { theme, language, sidebarOpen } = get();
    localStorage.setItem(KEY, JSON.stringify({ theme, language, sidebarOpen }));
    if (change.theme) showTheme();
    if (change.language) changeLanguage(change.language);
  },

  async loadDefaults() {
    set({ defaults: await api.settings(), areDefaultsKnown: true });
  },

  async saveDefaults(settings) {
    set({ defaults: await api.saveSettings(settings) });
  },
}));

const dark = () => matchMedia("(prefers-color-scheme: dark)");

/** public/theme.js does the same before the first paint. */
function showTheme(): void {
  const { theme } = usePreferences.getState();
  const shown = theme === "system" ? (dark().matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = shown;
  const background = getComputedStyle(document.documentElement).getPropertyValue("--panel");
  document.querySelector("meta[name=theme-color]")?.setAttribute("content", background.trim());
}

/** From now on the page looks as is preferred, also when the system turns dark. */
export function followTheme(): void {
  showTheme();
  dark().addEventListener("change", showTheme);
}
