import { useState, type KeyboardEvent } from "react";
import { useTranslation } from "react-i18next";

import type { Message } from "../api/types";
import { problemText } from "../i18n/server";
import { useAnswers } from "../store/answers";
import { usePreferences } from "../store/preferences";
import { Button } from "../ui";
import { GrowingText } from "./GrowingText";
import { isSendKey } from "./keys";
import { shownPictures, Thumbnails } from "./pictures/Thumbnails";

interface EditQuestionProps {
  conversationId: string;
  message: Message;
  onEnd: () => void;
}

/** A question that is written anew; the old one stays as a version. */
export function EditQuestion({ conversationId, message, onEnd }: EditQuestionProps) {
  const { t } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const [text, setText] = useState(message.text);
  const [pictures, setPictures] = useState(message.pictures);
  const [problem, setProblem] = useState<Error | null>(null);
  const canSend = text.trim() !== "" || pictures.length > 0;
  const send = async () => {
    if (!canSend) return;
    const refused = await useAnswers.getState().edit(conversationId, message.id, text, pictures);
    if (refused) setProblem(refused);
    else onEnd();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Escape" && !event.nativeEvent.isComposing) {
      event.preventDefault();
      onEnd();
    } else if (isSendKey(event.nativeEvent)) {
      event.preventDefault();
      void send();
    }
  };
  return (
    <article className="message question edited" aria-label={t("editing")}>
      <Thumbnails
        pictures={shownPictures(pictures)} label={t("pictures")}
        onRemove={(key) => setPictures(pictures.filter((_, place) => String(place) !== key))}
      />
      <GrowingText
        className="edit-text" aria-label={t("editing")} value={text} autoFocus
        onChange={(event) => setText(event.target.value)} onKeyDown={onKeyDown}
      />
      {problem && <p className="problem" role="alert">{t("notSent", { text: problemText(problem, language) })}</p>}
      <div className="edit-buttons">
        <Button small onClick={onEnd}>{t("cancelEdit")}</Button>
        <Button small variant="primary" disabled={!canSend} onClick={() => void send()}>{t("saveEdit")}</Button>
      </div>
    </article>
  );
}
