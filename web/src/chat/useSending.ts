import { useState } from "react";
import { useTranslation } from "react-i18next";

import { OfflineError } from "../api/client";
import type { Picture } from "../api/types";
import { problemText } from "../i18n/server";
import { usePreferences } from "../store/preferences";
import { draftOf, setDraft, uploaded } from "./drafts";

/** Asks; gives the reason if that could not be. */
export type Send = (text: string, pictures: Picture[]) => Promise<Error | null>;

/** Empties the draft when it is sent; puts it back if it cannot be. */
export function useSending(draftId: string, onSend: Send) {
  const { t } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const [refused, setRefused] = useState<Error | null>(null);
  const [isSending, setIsSending] = useState(false);
  const send = async () => {
    setIsSending(true);
    setRefused(null);
    setRefused(await attempt(draftId, onSend));
    setIsSending(false);
  };
  const problem = refused && (
    refused instanceof OfflineError ? t("offline") : t("notSent", { text: problemText(refused, language) }));
  return { problem, isSending, send };
}

async function attempt(draftId: string, onSend: Send): Promise<Error | null> {
  const pictures = await uploaded(draftId).catch((error: Error) => error);
  if (pictures instanceof Error) return pictures;
  const draft = draftOf(draftId);
  setDraft(draftId, { text: "", pictures: [] });
  const error = await onSend(draft.text, pictures);
  if (error) {
    const newer = draftOf(draftId); // written while it was sent
    setDraft(draftId, {
      text: [draft.text, newer.text].filter(Boolean).join("\n"),
      pictures: [...draft.pictures, ...newer.pictures],
    });
  }
  return error;
}
