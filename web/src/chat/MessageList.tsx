import { ArrowDown } from "lucide-react";
import { startTransition, useEffect, useMemo, useState, type ReactNode } from "react";
import { useTranslation } from "react-i18next";

import type { Conversation, Message } from "../api/types";
import { problemText } from "../i18n/server";
import { errorOf, useAnswers } from "../store/answers";
import { usePreferences } from "../store/preferences";
import { path } from "../tree";
import { IconButton } from "../ui";
import { Answer } from "./Answer";
import { Question } from "./Question";
import { useFollow } from "./useFollow";
import { useVersions } from "./useVersions";

interface MessageListProps {
  conversation: Conversation;
  label: string;
  empty: ReactNode; // what is shown before the first question
}

/** The branch of a conversation that is shown, in a box that scrolls. */
export function MessageList({ conversation, label, empty }: MessageListProps) {
  const { t } = useTranslation("chat");
  const { id, messages, leaf } = conversation;
  const branch = useMemo(() => path(messages, leaf), [messages, leaf]);
  const versionsOf = useVersions(messages);
  const isBusy = useAnswers(({ running }) => id in running);
  const { scroller, content, isAtEnd, toEnd } = useFollow(branch.length === 0);
  const first = Math.max(0, branch.length - useGrowing(branch.length));
  useEffect(toEnd, [id, toEnd]);
  useEffect(() => { if (isBusy) toEnd(); }, [isBusy, toEnd]); // whoever asks wants to see the answer
  return (
    <div className="messages">
      <div ref={scroller} className="scroller" role="region" aria-label={label} tabIndex={0}>
        <div ref={content} className={branch.length > 0 ? "column" : "column column-empty"}>
          {branch.length === 0 && empty}
          {branch.slice(first).map((message, place) => {
            const Kind = message.role === "user" ? Question : Answer;
            return (
              <Kind
                key={message.id}
                conversationId={id}
                message={message}
                versions={versionsOf(message)}
                isBusy={isBusy}
                isLast={first + place === branch.length - 1}
              />
            );
          })}
        </div>
      </div>
      {!isAtEnd && (
        <IconButton className="to-end" label={t("toEnd")} onClick={toEnd}><ArrowDown aria-hidden /></IconButton>
      )}
      <Announcer messages={messages} />
    </div>
  );
}

const AT_ONCE = 12;
const MORE = 4;

/** How many messages are shown, from the end: those that are seen first, the others a little later. */
function useGrowing(length: number): number {
  const [shown, setShown] = useState(AT_ONCE);
  useEffect(() => {
    if (shown >= length) return undefined;
    const timer = setTimeout(() => startTransition(() => setShown(shown + MORE)), 16);
    return () => clearTimeout(timer);
  }, [shown, length]);
  return shown;
}

const MOST_READ = 1000; // characters

/** Tells screen readers of an answer when it has ended, not of each word. */
function Announcer({ messages }: { messages: readonly Message[] }) {
  const { t } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const ended = useAnswers(({ lastEnded }) => lastEnded);
  const isHere = ended !== null && messages.some(({ id }) => id === ended.id);
  return <div className="visually-hidden" role="status" aria-live="polite">{isHere && text()}</div>;

  function text(): string {
    const error = ended && errorOf(ended);
    if (error) return t("answerFailed", { text: problemText(error, language) });
    if (ended?.status === "stopped") return t("answerStopped");
    return t("answered", { text: ended?.text.slice(0, MOST_READ) ?? "" });
  }
}
