import { useCallback, useMemo, type ReactNode } from "react";
import { useTranslation } from "react-i18next";

import type { Conversation, Model, Picture } from "../api/types";
import { useTitle } from "../models/useTitle";
import { useAnswers } from "../store/answers";
import { useChats, useModelOf } from "../store/chats";
import { readiest, sees, useSession } from "../store/session";
import { path } from "../tree";
import { Button } from "../ui";
import { Composer } from "./Composer";
import { useDraft } from "./drafts";
import { MessageList } from "./MessageList";
import { Welcome } from "./Welcome";

const NEW = "new"; // the draft of a conversation that has not begun outlives a reload

/** A conversation: its messages, and where to write the next. */
export function Column({ conversation }: { conversation: Conversation }) {
  const { t } = useTranslation("chat");
  const { id } = conversation;
  const isRunning = useAnswers(({ running }) => id in running);
  const draftId = useChats(({ unsaved }) => unsaved.has(id)) ? NEW : id;
  const blocked = useBlocked(conversation, draftId);
  const onSend = useCallback((text: string, pictures: Picture[]) => useAnswers.getState().send(id, text, pictures), [id]);
  const onStop = useCallback(() => useAnswers.getState().stop(id), [id]);
  return (
    <div className="chat">
      <MessageList conversation={conversation} label={t("messages")} empty={<Welcome conversation={conversation} />} />
      <Composer
        key={id}
        draftId={draftId}
        placeholder={t("ask")}
        isRunning={isRunning}
        blocked={blocked}
        onSend={onSend}
        onStop={onStop}
      />
    </div>
  );
}

/** Says that the model cannot see what it would be shown, and offers one that can. */
function useBlocked(conversation: Conversation, draftId: string): ReactNode {
  const model = useModelOf(conversation);
  const able = useSession(({ models }) => readiest(models.filter(sees)));
  const draft = useDraft(draftId);
  const { messages, leaf } = conversation;
  const isShown = useMemo(() => path(messages, leaf).some(({ pictures }) => pictures.length > 0), [messages, leaf]);
  const isBlind = model && !sees(model) && (isShown || draft.pictures.length > 0);
  const from = isBlind ? model : null;
  return useMemo(() => from && <Blind from={from} to={able} />, [from, able]);
}

function Blind({ from, to }: { from: Model; to: Model | undefined }) {
  const { t } = useTranslation("chat");
  const title = useTitle();
  return (
    <>
      <span>{t("blind", { model: title(from) })}{to ? "" : ` ${t("nobodySees")}`}</span>
      {to && (
        <Button small onClick={() => void useChats.getState().chooseModel(to.id)}>
          {t("useInstead", { model: title(to) })}
        </Button>
      )}
    </>
  );
}
