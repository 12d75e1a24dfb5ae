import { Download, Ellipsis, FileText, Pencil, Trash2 } from "lucide-react";
import { useState, type FormEvent } from "react";
import { useTranslation } from "react-i18next";
import type { ExportFormat } from "../api/client";
import type { ConversationSummary } from "../api/types";
import { useAnswers } from "../store/answers";
import { useChats } from "../store/chats";
import {
  Button, Confirm, Dialog, Field, IconButton, Input, Menu, MenuItem, MenuSeparator, Spinner, useToasts,
} from "../ui";
import { conversationHash, go, useRoute } from "./route";
import { report } from "./report";

export interface ConversationRowProps {
  conversation: ConversationSummary;
  onGo: () => void;
  onRemoved: () => void;
}

/** A line of the list: leads to the conversation, and has what can be done with it. */
export function ConversationRow({ conversation, onGo, onRemoved }: ConversationRowProps) {
  const { t } = useTranslation("shell");
  const { id } = conversation;
  const route = useRoute();
  const isCurrent = route.page === "chat" && route.id === id;
  const isAnswering = useAnswers((state) => id in state.running);
  const [asks, setAsks] = useState<"rename" | "delete" | null>(null);
  const title = conversation.title || t("untitled");

  const download = (format: ExportFormat) => report(useChats.getState().download(id, format));
  const remove = async () => {
    if (!(await report(useChats.getState().remove(id)))) return;
    useToasts.getState().say(t("deleted"), "done");
    if (isCurrent) go("#/");
    onRemoved();
  };
  const actions = (
    <IconButton small label={t("actions", { title })} className="row-actions"><Ellipsis /></IconButton>
  );
  return (
    <li className="row" data-current={isCurrent || undefined}>
      <a href={conversationHash(id)} aria-current={isCurrent ? "page" : undefined} title={title} onClick={onGo}>
        <span className="truncate">{title}</span>
        {isAnswering && (
          <span className="row-busy"><Spinner /><span className="visually-hidden">{t("answering")}</span></span>
        )}
      </a>
      <Menu trigger={actions}>
        <MenuItem icon={<Pencil />} onSelect={() => setAsks("rename")}>{t("rename")}</MenuItem>
        <MenuItem icon={<Download />} onSelect={() => void download("json")}>{t("exportJson")}</MenuItem>
        <MenuItem icon={<FileText />} onSelect={() => void download("markdown")}>{t("exportMarkdown")}</MenuItem>
        <MenuSeparator />
        <MenuItem danger icon={<Trash2 />} onSelect={() => setAsks("delete")}>{t("delete")}</MenuItem>
      </Menu>
      {asks === "rename" && <RenameDialog conversation={conversation} onClose={() => setAsks(null)} />}
      <Confirm
        open={asks === "delete"}
        title={t("deleteTitle")}
        text={t("deleteText", { title })}
        action={t("delete")}
        danger
        onConfirm={() => void remove()}
        onClose={() => setAsks(null)}
      />
    </li>
  );
}

function RenameDialog({ conversation, onClose }: { conversation: ConversationSummary; onClose: () => void }) {
  const { t } = useTranslation(["shell", "ui"]);
  const [title, setTitle] = useState(conversation.title);
  const save = async (event: FormEvent) => {
    event.preventDefault();
    const trimmed = title.trim();
    const isNew = trimmed && trimmed !== conversation.title;
    if (!isNew || (await report(useChats.getState().rename(conversation.id, trimmed)))) onClose();
  };
  return (
    <Dialog open onClose={onClose} title={t("renameTitle")} className="dialog-small">
      <form className="stack" onSubmit={(event) => void save(event)}>
        <Field label={t("title")}>
          {(wiring) => (
            <Input
              {...wiring}
              value={title}
              maxLength={200}
              data-first
              onFocus={(event) => event.target.select()}
              onChange={(event) => setTitle(event.target.value)}
            />
          )}
        </Field>
        <div className="dialog-foot">
          <Button onClick={onClose}>{t("ui:cancel")}</Button>
          <Button type="submit" variant="primary" disabled={!title.trim()}>{t("save")}</Button>
        </div>
      </form>
    </Dialog>
  );
}
