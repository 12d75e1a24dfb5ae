import { ArrowUp, ImagePlus, Square } from "lucide-react";
import { memo, useEffect, useRef, type FormEvent, type KeyboardEvent, type ReactNode } from "react";
import { useTranslation } from "react-i18next";

import { IconButton, Spinner, useMedia } from "../ui";
import { AttachButton } from "./AttachButton";
import { removeFromDraft, setDraft, useDraft } from "./drafts";
import { GrowingText } from "./GrowingText";
import { isSendKey } from "./keys";
import { Thumbnails } from "./pictures/Thumbnails";
import { useAddFiles } from "./useAddFiles";
import { useFileEvents } from "./useFileEvents";
import { useSending, type Send } from "./useSending";

export interface ComposerProps {
  draftId: string;
  placeholder: string;
  isRunning: boolean;
  blocked?: ReactNode; // why nothing can be sent now
  onSend: Send;
  onStop: () => void;
}

/** Where a question is written. What cannot be sent stays in it. */
export const Composer = memo(function Composer(
  { draftId, placeholder, isRunning, blocked, onSend, onStop }: ComposerProps,
) {
  const { t } = useTranslation("chat");
  const draft = useDraft(draftId);
  const area = useRef<HTMLTextAreaElement>(null);
  const { add, notes, reading, clear } = useAddFiles(draftId);
  const { problem, isSending, send } = useSending(draftId, onSend);
  const isOver = useFileEvents((files) => take(files));
  const touches = useMedia("(pointer: coarse)");
  useEffect(() => { if (!touches) area.current?.focus(); }, [draftId, touches]);

  const canSend = !isRunning && !isSending && !blocked && reading === null
    && (draft.text.trim() !== "" || draft.pictures.length > 0);
  function take(files: readonly File[]): void {
    void add(files);
    area.current?.focus();
  }
  const submit = (event?: FormEvent) => {
    event?.preventDefault();
    if (!canSend) return;
    clear();
    void send();
    area.current?.focus();
  };
  const stop = () => {
    onStop();
    area.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const isStop = event.key === "Escape" && isRunning;
    if (!isStop && !isSendKey(event.nativeEvent)) return;
    event.preventDefault();
    if (isStop) onStop();
    else submit();
  };
  return (
    <form className="composer" onSubmit={submit}>
      <Notices notes={notes} problem={problem} blocked={blocked} reading={reading} />
      <div className={isOver ? "box box-over" : "box"}>
        <Thumbnails
          pictures={draft.pictures.map(({ key, name, file, picture }) => ({ key, name, file, id: picture?.id ?? null }))}
          label={t("pictures")}
          onRemove={(key) => {
            removeFromDraft(draftId, key);
            area.current?.focus();
          }}
        />
        <GrowingText
          inner={area} className="ask" aria-label={placeholder} placeholder={placeholder} enterKeyHint="send"
          value={draft.text} onKeyDown={onKeyDown}
          onChange={(event) => setDraft(draftId, { text: event.target.value })}
        />
        <div className="box-row">
          <AttachButton onFiles={take} />
          <SendButton isRunning={isRunning} canSend={canSend} onStop={stop} />
        </div>
        {isOver && <div className="over" aria-hidden><ImagePlus />{t("dropHere")}</div>}
      </div>
    </form>
  );
});

interface NoticesProps {
  notes: readonly string[];
  problem: string | null;
  blocked: ReactNode;
  reading: string | null;
}

/** What stands in the way of a question, above it. */
function Notices({ notes, problem, blocked, reading }: NoticesProps) {
  const { t } = useTranslation("chat");
  return (
    <>
      {notes.length > 0 && <div className="notes" role="alert">{notes.map((each) => <p key={each}>{each}</p>)}</div>}
      {problem && <p className="problem" role="alert">{problem}</p>}
      {blocked && <div className="blocked" role="status">{blocked}</div>}
      {reading !== null && <p className="reading" role="status"><Spinner />{t("readingPdf", { name: reading })}</p>}
    </>
  );
}

/** Two buttons in one place. They are not one: a click that stops must not also send. */
function SendButton({ isRunning, canSend, onStop }: { isRunning: boolean; canSend: boolean; onStop: () => void }) {
  const { t } = useTranslation("chat");
  return isRunning ? (
    <IconButton key="stop" className="send" label={t("stop")} onClick={onStop}>
      <Square aria-hidden fill="currentColor" />
    </IconButton>
  ) : (
    <IconButton key="send" className="send" type="submit" label={t("send")} disabled={!canSend}>
      <ArrowUp aria-hidden />
    </IconButton>
  );
}
