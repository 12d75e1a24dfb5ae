import { useEffect } from "react";
import { useAnswers } from "../store/answers";
import { useChats } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { PHONE } from "../ui";
import { usePanels } from "./panels";
import { go } from "./route";

export const SEARCH_ID = "search-conversations";

interface Shortcut {
  key: string;
  shift: boolean;
  run: () => void;
}

const isPhone = (): boolean => matchMedia(PHONE).matches;

function showSidebar(): void {
  if (isPhone()) usePanels.getState().show("drawer");
  else usePreferences.getState().set({ sidebarOpen: true });
}

export function toggleSidebar(): void {
  const { sidebarOpen, set } = usePreferences.getState();
  if (isPhone()) usePanels.getState().show("drawer");
  else set({ sidebarOpen: !sidebarOpen });
}

function search(): void {
  usePanels.getState().close();
  showSidebar();
  // Once it is shown.
  requestAnimationFrame(() => {
    const input = document.getElementById(SEARCH_ID);
    if (input instanceof HTMLInputElement) input.select();
  });
}

function newChat(): void {
  usePanels.getState().close();
  go("#/");
}

const SHORTCUTS = {
  search: { key: "k", shift: false, run: search },
  new: { key: "o", shift: true, run: newChat },
  sidebar: { key: "s", shift: true, run: toggleSidebar },
  help: { key: "/", shift: false, run: () => usePanels.getState().show("shortcuts") },
} satisfies Record<string, Shortcut>;

const isApple = /Mac|iPhone|iPad/.test(navigator.userAgent);

/** As it stands on the keys: "Ctrl+Shift+O". */
export function shortcutKeys(name: keyof typeof SHORTCUTS): string {
  const { key, shift } = SHORTCUTS[name];
  const keys = [isApple ? "⌘" : "Ctrl", ...(shift ? [isApple ? "⇧" : "Shift"] : []), key.toUpperCase()];
  return keys.join(isApple ? "" : "+");
}

function onKey(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing) return;
  const isOver = document.querySelector("dialog[open]") !== null;
  if (event.key === "Escape") {
    const { current } = useChats.getState();
    if (current && !isOver) useAnswers.getState().stop(current.id);
    return;
  }
  if (isOver && !usePanels.getState().open) return; // a question that wants an answer
  const isModified = isApple ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
  if (!isModified || event.altKey) return;
  const pressed = event.key.toLowerCase();
  const shortcut = Object.values(SHORTCUTS).find(({ key, shift }) => key === pressed && shift === event.shiftKey);
  if (!shortcut) return;
  event.preventDefault();
  shortcut.run();
}

export function useShortcuts(): void {
  useEffect(() => {
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
}
