import { useEffect, useState } from "react";
import { useTranslation } from "react-i18next";

import { useToasts } from "../ui";

const SHOWN_MS = 1600;

/** Copies text; `copied` for a moment afterwards. */
export function useCopy(): { copied: boolean; copy: (text: string) => Promise<void> } {
  const { t } = useTranslation("chat");
  const say = useToasts((state) => state.say);
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = async (text: string) => {
    if (await write(text)) setCopied(true);
    else say(t("copyFailed"), "error");
  };
  return { copied, copy };
}

async function write(text: string): Promise<boolean> {
  // The clipboard is there for pages of this machine or by https alone.
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const area = document.createElement("textarea");
  area.value = text.trimEnd();
  area.className = "visually-hidden";
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}
