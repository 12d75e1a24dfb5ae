import { Tabs } from "radix-ui";
import { useState, type ReactNode } from "react";
import { useTranslation } from "react-i18next";
import { problemText } from "../i18n/server";
import { useTitle } from "../models/useTitle";
import { usePanels } from "../shell/panels";
import { report } from "../shell/report";
import { useRoute } from "../shell/route";
import type { ChatSettings, Conversation } from "../api/types";
import { useChats, useModelOf } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { useChosen, useSession } from "../store/session";
import { Button, Dialog, Field, Select, useToasts } from "../ui";
import { PageSettings } from "./PageSettings";
import { SettingsForm } from "./SettingsForm";
import { useSaved, type SaveState } from "./useSaved";

type TabName = "conversation" | "defaults" | "page";

export function SettingsDialog() {
  const { t } = useTranslation("settings");
  const { open, close } = usePanels();
  const { page } = useRoute();
  const current = useChats((state) => state.current);
  const areKnown = usePreferences((state) => state.areDefaultsKnown);
  const [chosenTab, setTab] = useState<TabName>("conversation");
  const isOfChat = page === "chat" && current !== null;
  const tab = chosenTab === "conversation" && !isOfChat ? "defaults" : chosenTab;
  return (
    <Dialog
      open={open === "settings"}
      onClose={close}
      title={t("title")}
      className="dialog-wide dialog-sheet dialog-settings"
    >
      <Tabs.Root value={tab} onValueChange={(next) => setTab(next as TabName)}>
        <Tabs.List className="tabs" aria-label={t("title")}>
          {isOfChat && <Tab name="conversation">{t("thisConversation")}</Tab>}
          <Tab name="defaults">{t("newConversations")}</Tab>
          <Tab name="page">{t("appearance")}</Tab>
        </Tabs.List>
        <TabBody name="conversation">
          {current && <ConversationSettings key={current.id} conversation={current} />}
        </TabBody>
        <TabBody name="defaults">
          {areKnown ? <DefaultSettings /> : <p className="muted">{t("unknown")}</p>}
        </TabBody>
        <TabBody name="page"><PageSettings /></TabBody>
      </Tabs.Root>
    </Dialog>
  );
}

function Tab({ name, children }: { name: TabName; children: ReactNode }) {
  return <Tabs.Trigger className="tab" value={name}>{children}</Tabs.Trigger>;
}

function TabBody({ name, children }: { name: TabName; children: ReactNode }) {
  return <Tabs.Content className="tab-body" value={name}>{children}</Tabs.Content>;
}

function ConversationSettings({ conversation }: { conversation: Conversation }) {
  const { t } = useTranslation("settings");
  const model = useModelOf(conversation);
  const saveDefaults = usePreferences((state) => state.saveDefaults);
  const { draft, change, state } = useSaved<ChatSettings>(conversation.settings, ({ system, sampling }) => (
    useChats.getState().saveSettings({ system, sampling }, conversation.id)));
  const useAsDefault = async () => {
    const { model: kept } = usePreferences.getState().defaults;
    const done = await report(saveDefaults({ ...draft, model: kept }));
    if (done) useToasts.getState().say(t("usedAsDefault"), "done");
  };
  return (
    <>
      <div className="settings-head">
        <p className="muted small">{t("conversationText")}</p>
        <Saved state={state} />
      </div>
      <SettingsForm settings={draft} model={model} onChange={change} />
      <div className="settings-foot">
        <Button small onClick={() => void useAsDefault()}>{t("useAsDefault")}</Button>
      </div>
    </>
  );
}

function DefaultSettings() {
  const { t } = useTranslation("settings");
  const { defaults, saveDefaults } = usePreferences();
  const models = useSession((state) => state.models);
  const chosen = useChosen();
  const nameOf = useTitle();
  const { draft, change, state } = useSaved<ChatSettings>(defaults, async (settings) => {
    await saveDefaults(settings);
    applyToEmptyChat(settings);
  });
  const served = models.filter((model) => model.served);
  const model = served.find(({ id }) => id === draft.model) ?? chosen;
  return (
    <>
      <div className="settings-head">
        <p className="muted small">{t("defaultsText")}</p>
        <Saved state={state} />
      </div>
      <Field label={t("model")}>
        {(wiring) => (
          <Select
            {...wiring}
            value={draft.model ?? ""}
            onChange={(id) => change({ ...draft, model: id || null })}
            options={[
              { value: "", label: t("modelChosen") },
              ...served.map((each) => ({ value: each.id, label: nameOf(each) })),
            ]}
          />
        )}
      </Field>
      <SettingsForm settings={draft} model={model} onChange={change} />
    </>
  );
}

/** The conversation that is open and has not begun is a new one. */
function applyToEmptyChat(settings: ChatSettings): void {
  const { current, unsaved, saveSettings } = useChats.getState();
  if (current && !current.messages.length && unsaved.has(current.id)) void saveSettings(settings);
}

function Saved({ state }: { state: SaveState }) {
  const { t } = useTranslation("settings");
  const language = usePreferences((preferences) => preferences.language);
  return (
    <p role="status" className={state.kind === "failed" ? "saved saved-failed" : "saved"}>
      {state.kind === "saving" && t("saving")}
      {state.kind === "saved" && t("saved")}
      {state.kind === "failed" && t("notSaved", { problem: problemText(state.error, language) })}
    </p>
  );
}
