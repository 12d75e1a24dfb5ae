import { useRef, useState } from "react";
import { useTranslation } from "react-i18next";

import { addToDraft, draftOf } from "./drafts";
import { MAX_PICTURES, readKind, type Fault } from "./pictures/kinds";

export interface AddFiles {
  add: (files: readonly File[]) => Promise<void>;
  notes: string[]; // what could not be taken, and why
  reading: string | null; // the name of the PDF that is being read
  clear: () => void;
}

/** Takes files into a draft, one after the other. */
export function useAddFiles(draftId: string): AddFiles {
  const { t } = useTranslation("chat");
  const [notes, setNotes] = useState<string[]>([]);
  const [reading, setReading] = useState<string | null>(null);
  const line = useRef<Promise<void>>(Promise.resolve());
  const note = (text: string) => setNotes((before) => [...before, text]);

  async function addPicture(file: Blob, name: string): Promise<boolean> {
    if (draftOf(draftId).pictures.length >= MAX_PICTURES) {
      note(t("tooMany", { names: name, most: MAX_PICTURES }));
      return false;
    }
    addToDraft(draftId, file, name).catch((error: Error) => note(`${name}: ${error.message}`));
    return true;
  }

  async function addPdf(file: Blob, name: string): Promise<void> {
    setReading(name);
    try {
      const { openPdf, MAX_PAGES } = await import("./pictures/pdf");
      const { count, pages } = await openPdf(file);
      let page = 0;
      for await (const picture of pages) {
        page += 1;
        if (!(await addPicture(picture, count > 1 ? t("page", { name, page }) : name))) return;
      }
      if (count > MAX_PAGES) note(t("pdfCut", { name, pages: count, most: MAX_PAGES }));
    } catch {
      note(t("unreadable", { names: name }));
    } finally {
      setReading(null);
    }
  }

  async function takeAll(files: readonly File[]): Promise<void> {
    const refused = new Map<Fault, string[]>();
    for (const file of files) {
      const kind = await readKind(file);
      if (typeof kind === "string") refused.set(kind, [...(refused.get(kind) ?? []), file.name]);
      else if (kind.type === "application/pdf") await addPdf(kind, file.name);
      else await addPicture(kind, file.name);
    }
    for (const [fault, names] of refused) note(t(fault, { names: names.join(t("listComma")) }));
  }

  return {
    add(files) {
      if (files.length > 0) setNotes([]);
      line.current = line.current.then(() => takeAll(files));
      return line.current;
    },
    notes,
    reading,
    clear: () => setNotes([]),
  };
}
