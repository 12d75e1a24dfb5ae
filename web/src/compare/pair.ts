// The two conversations that are compared. Their ids are kept by the browser: a reload shows them again.

import { useEffect, useState } from "react";

import { OfflineError } from "../api/client";
import type { Conversation, Model } from "../api/types";
import { beginConversation, fetchConversation, useChats } from "../store/chats";
import { readiest, useSession } from "../store/session";

export type Side = "left" | "right";
export const SIDES: readonly Side[] = ["left", "right"];
export type Pair = Record<Side, string>; // ids

const KEY = "shuzhai.compare";

export interface Compared {
  pair: Record<Side, Conversation> | null; // null: they are being fetched
  restart: () => void;
}

export function useCompared(): Compared {
  const [ids, setIds] = useState<Pair | null>(null);
  const held = useChats((state) => state.held);
  const isReady = useSession(({ models }) => models.length > 0);
  useEffect(() => {
    if (!isReady || ids) return;
    restore().then(setIds, () => undefined);
  }, [isReady, ids]);
  useEffect(() => {
    if (ids) localStorage.setItem(KEY, JSON.stringify(ids));
  }, [ids]);
  const left = held[ids?.left ?? ""];
  const right = held[ids?.right ?? ""];
  const isGone = ids !== null && !(left && right); // one of them was deleted
  useEffect(() => { if (isGone) setIds(begin()); }, [isGone]);
  return { pair: left && right ? { left, right } : null, restart: () => setIds(begin()) };
}

async function restore(): Promise<Pair> {
  const kept = readKept();
  if (!kept) return begin();
  const { held } = useChats.getState();
  if (SIDES.every((side) => kept[side] in held)) return kept;
  try {
    await Promise.all(SIDES.map((side) => fetchConversation(kept[side])));
    return kept;
  } catch (error) {
    if (error instanceof OfflineError) throw error;
    return begin(); // never asked anything, or deleted
  }
}

function readKept(): Pair | null {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "null") as Pair | null;
  } catch {
    return null;
  }
}

function begin(): Pair {
  const { models, chosen } = useSession.getState();
  const [left, right] = twoOf(models, chosen);
  return { left: beginConversation(left).id, right: beginConversation(right).id };
}

/** The chosen model and the readiest of the others that does the same; alone, it is there twice. */
export function twoOf(models: Model[], chosen: string | null): [string | null, string | null] {
  const first = models.find(({ id, served }) => served && id === chosen) ?? readiest(models);
  if (!first) return [null, null];
  const others = models.filter(({ id }) => id !== first.id);
  const alike = others.filter((model) => model.input_modalities.length === first.input_modalities.length);
  const second = readiest(alike) ?? readiest(others) ?? first;
  return [first.id, second.id];
}
