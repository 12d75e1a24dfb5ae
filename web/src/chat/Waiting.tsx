import { useEffect, useState } from "react";
import { useTranslation } from "react-i18next";

import type { Message } from "../api/types";
import { stageText } from "../i18n/server";
import { useTitle } from "../models/useTitle";
import { useAnswers } from "../store/answers";
import { usePreferences } from "../store/preferences";
import { readiest, useSession } from "../store/session";
import { Progress } from "../ui";

const SLOW_MS = 10_000;

/** What is done until the first word of an answer. */
export function Waiting({ conversationId, message }: { conversationId: string; message: Message }) {
  const { t } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const title = useTitle();
  const stage = useAnswers(({ running }) => running[conversationId]?.stage);
  const model = useSession(({ models }) => models.find(({ id }) => id === message.model));
  if (model?.state !== "loading") {
    return (
      <p className="thinking" role="status">
        <span className="dots" aria-hidden><i /><i /><i /></span>
        <span className="visually-hidden">{t(stage === "saving" ? "saving" : "thinking")}</span>
      </p>
    );
  }
  const text = t("gettingReady", { model: title(model) });
  const percent = model.progress === null ? "" : ` ${Math.floor(model.progress * 100)}%`;
  return (
    <div className="loading">
      <p role="status">{text}</p>
      <Progress value={model.progress} label={text} />
      <p className="loading-stage">{model.status && stageText(model.status, language)}{percent}</p>
      <OtherReady model={model.id} news={`${model.status} ${model.progress}`} />
    </div>
  );
}

/** Names a model that need not be waited for, once the wait is long. */
function OtherReady({ model, news }: { model: string; news: string }) {
  const { t } = useTranslation("chat");
  const title = useTitle();
  const [isSlow, setIsSlow] = useState(false);
  const other = useSession(({ models }) => readiest(models.filter(({ id, state }) => id !== model && state === "loaded")));
  useEffect(() => {
    setIsSlow(false);
    const timer = setTimeout(() => setIsSlow(true), SLOW_MS);
    return () => clearTimeout(timer);
  }, [news]);
  return isSlow && other ? <p className="loading-stage">{t("otherReady", { model: title(other) })}</p> : null;
}
