import { memo } from "react";
import { useTranslation } from "react-i18next";

import { OfflineError } from "../api/client";
import type { Message } from "../api/types";
import { problemText } from "../i18n/server";
import { errorOf, useAnswers } from "../store/answers";
import { usePreferences } from "../store/preferences";
import { Button } from "../ui";
import { Markdown } from "./markdown/Markdown";
import { MessageActions } from "./MessageActions";
import type { MessageProps } from "./Question";
import { Stats } from "./Stats";
import { Waiting } from "./Waiting";

export const Answer = memo(function Answer({ conversationId, message, versions, isBusy, isLast }: MessageProps) {
  const { t } = useTranslation("chat");
  const { status } = message;
  const isGrowing = status === "streaming";
  const text = useAnswers(({ live }) => live[message.id]) ?? message.text;
  return (
    <article className="message answer" aria-label={t("answer")} aria-busy={isGrowing} data-last={isLast || undefined}>
      {text !== "" && <Markdown text={text} growing={isGrowing} />}
      {isGrowing && text === "" && <Waiting conversationId={conversationId} message={message} />}
      {!isGrowing && (
        <>
          <Ending conversationId={conversationId} message={message} isBusy={isBusy} />
          <div className="below">
            <MessageActions conversationId={conversationId} message={message} versions={versions} isBusy={isBusy} />
            <Stats model={message.model} stats={message.stats} />
          </div>
        </>
      )}
    </article>
  );
});

/** How an answer ended, where that is not at its own end. */
function Ending({ conversationId, message, isBusy }: { conversationId: string; message: Message; isBusy: boolean }) {
  const { t } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const { regenerate, continueAnswer } = useAnswers.getState();
  const { id, text, status } = message;
  if (status === "done") return text === "" ? <p className="ending">{t("empty")}</p> : null;
  const goOn = () => void (text === "" ? regenerate(conversationId, id) : continueAnswer(conversationId, id));
  const button = (
    <Button small disabled={isBusy} onClick={goOn}>{text === "" ? t("tryAgain") : t("continue")}</Button>
  );
  if (status === "error") {
    const error = errorOf(message);
    const why = error instanceof OfflineError ? t("lost") : error && problemText(error, language);
    return (
      <div className="failed">
        <p><strong>{t(text === "" ? "error" : "errorCut")}</strong> {why}</p>
        {button}
      </div>
    );
  }
  return <p className="ending">{t(status === "length" ? "reachedLimit" : "stopped")}{button}</p>;
}
