import { lazy, Suspense, useEffect } from "react";
import { useTranslation } from "react-i18next";
import { ChatView } from "./chat/ChatView";
import { ModelsDialog } from "./models/ModelsDialog";
import { SettingsDialog } from "./settings/SettingsDialog";
import { ConnectionBanner } from "./shell/ConnectionBanner";
import { report, reportQuietly } from "./shell/report";
import { Fault } from "./shell/Fault";
import { Header } from "./shell/Header";
import { KeyDialog } from "./shell/KeyDialog";
import { conversationHash, readRoute, rename, useRoute, type Route } from "./shell/route";
import { ShortcutsDialog } from "./shell/ShortcutsDialog";
import { useShortcuts } from "./shell/shortcuts";
import { Sidebar } from "./shell/Sidebar";
import { loadDefaults, useChats } from "./store/chats";
import { followServer, useSession } from "./store/session";
import { Spinner, Toasts } from "./ui";

const CompareView = lazy(async () => ({ default: (await import("./compare/CompareView")).CompareView }));

export function App() {
  const { t } = useTranslation("shell");
  const route = useRoute();
  useShortcuts();
  useConversation(route);
  useServerData();
  const title = useTitle(route);
  return (
    <div className="app">
      <a className="skip" href="#main" onClick={focusMain}>{t("skip")}</a>
      <Sidebar />
      <div className="stage">
        <Header />
        <ConnectionBanner />
        <main id="main" className="main" tabIndex={-1}>
          <h1 className="visually-hidden">{title || t("newChat")}</h1>
          <Fault resetKey={`${route.page}/${route.id}`}>
            <Suspense fallback={<div className="waiting"><Spinner /></div>}>
              {route.page === "compare" ? <CompareView /> : <ChatView />}
            </Suspense>
          </Fault>
        </main>
      </div>
      <SettingsDialog />
      <ModelsDialog />
      <ShortcutsDialog />
      <KeyDialog />
      <Toasts />
    </div>
  );
}

/** The address is that of the page's own: the skip link must not change it. */
function focusMain(event: React.MouseEvent): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/** Shows the conversation of the address, and gives a new one its address with its first question. */
function useConversation({ page, id }: Route): void {
  useEffect(() => {
    if (page !== "chat") return;
    const { current, startNew, open } = useChats.getState();
    if (id === null) startNew();
    else if (current?.id !== id) void report(open(id));
  }, [page, id]);
  useEffect(() => {
    if (page !== "chat" || id !== null) return undefined;
    return useChats.subscribe(({ current, unsaved }) => {
      if (current?.messages.length && !unsaved.has(current.id)) rename(conversationHash(current.id));
    });
  }, [page, id]);
}

/** The list and the defaults, whenever the server is there (again). */
function useServerData(): void {
  const isOnline = useSession((state) => state.status === "online");
  useEffect(followServer, []);
  useEffect(() => {
    if (!isOnline) return;
    const { loadList, current, open } = useChats.getState();
    const { page, id } = readRoute(location.hash);
    void reportQuietly(loadList());
    void reportQuietly(loadDefaults());
    if (page === "chat" && id !== null && !current) void reportQuietly(open(id));
  }, [isOnline]);
}

function useTitle({ page }: Route): string | undefined {
  const { t } = useTranslation("shell");
  const current = useChats((state) => state.current?.title);
  const title = page === "compare" ? t("compare") : current;
  useEffect(() => {
    document.title = title ? `${title} · ${t("name")}` : "Shuzhai 书斋";
  }, [title, t]);
  return title;
}
