import { Check, ChevronLeft, ChevronRight, Copy, Pencil, RotateCcw } from "lucide-react";
import { memo } from "react";
import { useTranslation } from "react-i18next";

import type { Message } from "../api/types";
import { useAnswers } from "../store/answers";
import { IconButton } from "../ui";
import { useCopy } from "./useCopy";

interface MessageActionsProps {
  conversationId: string;
  message: Message;
  versions: readonly string[]; // ids, oldest first, this one among them
  isBusy: boolean; // an answer of the conversation is under way
  onEdit?: () => void;
}

export const MessageActions = memo(function MessageActions(
  { conversationId, message, versions, isBusy, onEdit }: MessageActionsProps,
) {
  const { t } = useTranslation("chat");
  const { copied, copy } = useCopy();
  const { regenerate } = useAnswers.getState();
  const { id, role, text } = message;
  return (
    <div className="actions">
      {versions.length > 1 && <Versions conversationId={conversationId} id={id} versions={versions} />}
      {text !== "" && (
        <IconButton small label={copied ? t("copied") : t("copy")} onClick={() => void copy(text)}>
          {copied ? <Check aria-hidden /> : <Copy aria-hidden />}
        </IconButton>
      )}
      {role === "assistant" && (
        <IconButton small label={t("regenerate")} disabled={isBusy} onClick={() => void regenerate(conversationId, id)}>
          <RotateCcw aria-hidden />
        </IconButton>
      )}
      {onEdit && (
        <IconButton small label={t("edit")} disabled={isBusy} onClick={onEdit}><Pencil aria-hidden /></IconButton>
      )}
    </div>
  );
});

interface VersionsProps {
  conversationId: string;
  id: string;
  versions: readonly string[];
}

function Versions({ conversationId, id, versions }: VersionsProps) {
  const { t } = useTranslation("chat");
  const place = versions.indexOf(id);
  const choose = (version: string | undefined) => {
    if (version) useAnswers.getState().chooseVersion(conversationId, version);
  };
  const counts = { number: place + 1, count: versions.length };
  return (
    <span className="versions" role="group" aria-label={t("versions")}>
      <IconButton small label={t("previousVersion")} disabled={place === 0} onClick={() => choose(versions[place - 1])}>
        <ChevronLeft aria-hidden />
      </IconButton>
      <span className="versions-place" aria-hidden>{counts.number}/{counts.count}</span>
      <span className="visually-hidden">{t("version", counts)}</span>
      <IconButton
        small label={t("nextVersion")} disabled={place === versions.length - 1}
        onClick={() => choose(versions[place + 1])}
      >
        <ChevronRight aria-hidden />
      </IconButton>
    </span>
  );
}
