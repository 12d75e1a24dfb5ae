import { useSyncExternalStore } from "react";

export interface Route {
  page: "chat" | "compare";
  id: string | null; // of the conversation; null: a new one
}

/** #/ is a new chat, #/c/ID a kept one, #/compare two models side by side. */
export function readRoute(hash: string): Route {
  const [page, id] = hash.replace(/^#\/?/, "").split("/");
  if (page === "compare") return { page, id: null };
  return { page: "chat", id: page === "c" && id ? id : null };
}

export function conversationHash(id: string | null): string {
  return id === null ? "#/" : `#/c/${id}`;
}

export function go(hash: string): void {
  location.hash = hash;
}

/** Another address for what is already shown: Back does not lead to the old one. */
export function rename(hash: string): void {
  if (location.hash === hash) return;
  history.replaceState(null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

function follow(changed: () => void): () => void {
  addEventListener("hashchange", changed);
  return () => removeEventListener("hashchange", changed);
}

export function useRoute(): Route {
  return readRoute(useSyncExternalStore(follow, () => location.hash));
}
