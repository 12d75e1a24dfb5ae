// What is written and not sent: a text and pictures for each conversation. Kept by the browser, so
// that a reload loses nothing; of the pictures, those that the server has.

import { create } from "zustand";

import { api, OfflineError } from "../api/client";
import { newId } from "../api/ids";
import type { Picture } from "../api/types";

/** A picture that waits to be sent. `file` until the server has it, `picture` from then on. */
export interface DraftPicture {
  key: string;
  name: string;
  file: Blob | null;
  picture: Picture | null;
}

export interface Draft {
  text: string;
  pictures: DraftPicture[];
}

const KEY = "shuzhai.drafts";
const MOST_KEPT = 30;
const EMPTY: Draft = { text: "", pictures: [] };

interface Kept { text: string; pictures: Picture[] }

interface Drafts { drafts: Record<string, Draft> }

export const useDrafts = create<Drafts>(() => ({ drafts: readKept() }));

export function useDraft(id: string): Draft {
  return useDrafts(({ drafts }) => drafts[id] ?? EMPTY);
}

export function draftOf(id: string): Draft {
  return useDrafts.getState().drafts[id] ?? EMPTY;
}

export function setDraft(id: string, change: Partial<Draft>): void {
  const { [id]: before = EMPTY, ...others } = useDrafts.getState().drafts;
  const draft = { ...before, ...change };
  const isEmpty = draft.text === "" && draft.pictures.length === 0;
  useDrafts.setState({ drafts: isEmpty ? others : { ...others, [id]: draft } });
  keepSoon();
}

/** Adds a picture, and brings it to the server. Throws what the server says against it. */
export async function addToDraft(id: string, file: Blob, name: string): Promise<void> {
  const added: DraftPicture = { key: newId(), name, file, picture: null };
  setDraft(id, { pictures: [...draftOf(id).pictures, added] });
  try {
    await upload(id, added);
  } catch (error) {
    if (error instanceof OfflineError) return; // it is tried again when it is sent
    removeFromDraft(id, added.key);
    throw error;
  }
}

export function addPictureToDraft(id: string, picture: Picture): void {
  const added: DraftPicture = { key: newId(), name: picture.name, file: null, picture };
  setDraft(id, { pictures: [...draftOf(id).pictures, added] });
}

export function removeFromDraft(id: string, key: string): void {
  setDraft(id, { pictures: draftOf(id).pictures.filter((each) => each.key !== key) });
}

const uploads = new Map<string, Promise<void>>();

function upload(id: string, { key, file, name }: DraftPicture): Promise<void> {
  const begun = uploads.get(key);
  if (begun || !file) return begun ?? Promise.resolve();
  const work = api.upload(file, name)
    .then((picture) => {
      const pictures = draftOf(id).pictures.map((each) => (each.key === key ? { ...each, picture } : each));
      setDraft(id, { pictures });
    })
    .finally(() => uploads.delete(key));
  uploads.set(key, work);
  return work;
}

/** The pictures of a draft, all of them with the server. */
export async function uploaded(id: string): Promise<Picture[]> {
  await Promise.all(draftOf(id).pictures.filter(({ picture }) => !picture).map((each) => upload(id, each)));
  return draftOf(id).pictures.flatMap(({ picture }) => picture ?? []);
}

let timer: ReturnType<typeof setTimeout> | undefined;

function keepSoon(): void {
  clearTimeout(timer);
  timer = setTimeout(keep, 300);
}

function keep(): void {
  const drafts = Object.entries(useDrafts.getState().drafts).slice(-MOST_KEPT);
  const kept = drafts.map(([id, { text, pictures }]): [string, Kept] => (
    [id, { text, pictures: pictures.flatMap(({ picture }) => picture ?? []) }]));
  try {
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(kept)));
  } catch {
    // the browser's room is full: this one is kept while the page is open
  }
}

function readKept(): Record<string, Draft> {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Record<string, Kept>;
    return Object.fromEntries(Object.entries(kept).map(([id, { text, pictures }]) => [id, {
      text,
      pictures: pictures.map((picture) => ({ key: newId(), name: picture.name, file: null, picture })),
    }]));
  } catch {
    return {};
  }
}

addEventListener("pagehide", keep);
