import { PanelLeft, Search, SquarePen, Upload, X } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { useTranslation } from "react-i18next";
import { useShallow } from "zustand/react/shallow";
import { problemText } from "../i18n/server";
import { useChats } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { Button, Dialog, IconButton, Input, PHONE, useMedia, useToasts } from "../ui";
import { ConversationRow } from "./ConversationRow";
import { groupByDay } from "./groups";
import { Mark } from "./Mark";
import { usePanels } from "./panels";
import { reportQuietly } from "./report";
import { conversationHash, go } from "./route";
import { SEARCH_ID, shortcutKeys } from "./shortcuts";

/** The list of conversations: beside them, or a drawer over them on a phone. */
export function Sidebar() {
  const { t } = useTranslation("shell");
  const isPhone = useMedia(PHONE);
  const { open, close } = usePanels();
  const { sidebarOpen, set } = usePreferences();
  if (isPhone) {
    return (
      <Dialog open={open === "drawer"} onClose={close} title={t("conversations")} plain className="dialog-drawer">
        <Content onGo={close} onHide={close} />
      </Dialog>
    );
  }
  return (
    <nav className="sidebar" aria-label={t("conversations")} inert={!sidebarOpen} data-open={sidebarOpen}>
      <Content onGo={() => undefined} onHide={() => set({ sidebarOpen: false })} />
    </nav>
  );
}

function Content({ onGo, onHide }: { onGo: () => void; onHide: () => void }) {
  const { t } = useTranslation("shell");
  const newChat = useRef<HTMLAnchorElement>(null);
  return (
    <div className="sidebar-content">
      <div className="sidebar-head">
        <span className="brand">
          <Mark />
          <span className="brand-name">{t("name")}</span>
        </span>
        <IconButton label={t("closeSidebar")} onClick={onHide}><PanelLeft /></IconButton>
      </div>
      <a ref={newChat} className="new-chat" href="#/" title={shortcutKeys("new")} onClick={onGo}>
        <SquarePen aria-hidden="true" />
        {t("newChat")}
      </a>
      <SearchBox />
      <List onGo={onGo} onRemoved={() => newChat.current?.focus()} />
      <ImportButton onGo={onGo} />
    </div>
  );
}

const TYPING_MS = 250;

function SearchBox() {
  const { t } = useTranslation("shell");
  const [text, setText] = useState(() => useChats.getState().search);
  useEffect(() => {
    if (text.trim() === useChats.getState().search) return undefined;
    const timer = setTimeout(() => {
      void reportQuietly(useChats.getState().loadList(text.trim()));
    }, TYPING_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <div className="search" role="search">
      <Search aria-hidden="true" />
      <Input
        id={SEARCH_ID}
        type="search"
        enterKeyHint="search"
        value={text}
        aria-label={t("search")}
        placeholder={t("search")}
        title={shortcutKeys("search")}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => {
          if (event.key !== "Escape" || !text || event.nativeEvent.isComposing) return;
          event.preventDefault();
          setText("");
        }}
      />
      {text && <IconButton small label={t("clearSearch")} onClick={() => setText("")}><X /></IconButton>}
    </div>
  );
}

function List({ onGo, onRemoved }: { onGo: () => void; onRemoved: () => void }) {
  const { t } = useTranslation("shell");
  const language = usePreferences((state) => state.language);
  // Not all of it: the store changes with each word of an answer.
  const { list, hasMore, search, isListed } = useChats(useShallow((state) => ({
    list: state.list, hasMore: state.hasMore, search: state.search, isListed: state.isListed,
  })));
  const [isLoading, setLoading] = useState(false);
  const more = async () => {
    setLoading(true);
    await reportQuietly(useChats.getState().loadMore());
    setLoading(false);
  };
  const groups = groupByDay(list, new Date(), language);
  return (
    <div className="list">
      {groups.map(({ key, name, label, items }) => (
        <section key={key} aria-labelledby={`group-${key}`}>
          <h2 id={`group-${key}`}>{name ? t(name) : label}</h2>
          <ul>
            {items.map((item) => (
              <ConversationRow key={item.id} conversation={item} onGo={onGo} onRemoved={onRemoved} />
            ))}
          </ul>
        </section>
      ))}
      {isListed && !list.length && (
        <p className="list-empty">{search ? t("nothingFound", { search }) : t("nothingYet")}</p>
      )}
      {hasMore && <Button variant="ghost" small busy={isLoading} onClick={() => void more()}>{t("more")}</Button>}
    </div>
  );
}

function ImportButton({ onGo }: { onGo: () => void }) {
  const { t } = useTranslation("shell");
  const language = usePreferences((state) => state.language);
  const input = useRef<HTMLInputElement>(null);
  const [isBusy, setBusy] = useState(false);
  const take = async (file: File) => {
    const { say } = useToasts.getState();
    setBusy(true);
    try {
      const imported = await useChats.getState().importFile(file);
      say(t("imported", { count: imported.length }), "done");
      const first = imported[0];
      if (imported.length === 1 && first) {
        go(conversationHash(first.id));
        onGo();
      }
    } catch (error) {
      say(error instanceof SyntaxError ? t("notConversations") : problemText(error, language), "error");
    }
    setBusy(false);
  };
  return (
    <div className="sidebar-foot">
      <Button variant="ghost" small busy={isBusy} onClick={() => input.current?.click()}>
        <Upload aria-hidden="true" />
        {t("import")}
      </Button>
      <input
        ref={input}
        type="file"
        accept=".json,.md,application/json,text/markdown"
        hidden
        onChange={(event) => {
          const file = event.target.files?.[0];
          event.target.value = ""; // the same file may be chosen again
          if (file) void take(file);
        }}
      />
    </div>
  );
}
