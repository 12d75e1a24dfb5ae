import { memo, useState } from "react";
import { useTranslation } from "react-i18next";

import type { Message } from "../api/types";
import { EditQuestion } from "./EditQuestion";
import { MessageActions } from "./MessageActions";
import { shownPictures, Thumbnails } from "./pictures/Thumbnails";

export interface MessageProps {
  conversationId: string;
  message: Message;
  versions: readonly string[];
  isBusy: boolean;
  isLast: boolean;
}

export const Question = memo(function Question({ conversationId, message, versions, isBusy }: MessageProps) {
  const { t } = useTranslation("chat");
  const [isEdited, setIsEdited] = useState(false);
  if (isEdited) {
    return <EditQuestion conversationId={conversationId} message={message} onEnd={() => setIsEdited(false)} />;
  }
  return (
    <article className="message question" aria-label={t("question")}>
      <Thumbnails large pictures={shownPictures(message.pictures)} label={t("shownPictures")} />
      <div className="said">
        {message.text !== "" && <div className="bubble">{message.text}</div>}
        <MessageActions
          conversationId={conversationId} message={message} versions={versions} isBusy={isBusy}
          onEdit={() => setIsEdited(true)}
        />
      </div>
    </article>
  );
});
