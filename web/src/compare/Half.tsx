import { MessageSquare } from "lucide-react";
import { useEffect } from "react";
import { useTranslation } from "react-i18next";

import type { Conversation } from "../api/types";
import { MessageList } from "../chat/MessageList";
import { useTitle } from "../models/useTitle";
import { useAnswers } from "../store/answers";
import { useChats, useModelOf } from "../store/chats";
import { useSession } from "../store/session";
import { IconButton, Select } from "../ui";
import type { Side } from "./pair";

/** One model's conversation. */
export function Half({ side, conversation }: { side: Side; conversation: Conversation }) {
  const { t } = useTranslation("compare");
  const { t: chat } = useTranslation("chat");
  const { id } = conversation;
  const model = useModelOf(conversation);
  const models = useSession((state) => state.models);
  const title = useTitle();
  const isRunning = useAnswers(({ running }) => id in running);
  const choose = (chosen: string) => void useChats.getState().saveSettings({ model: chosen }, id);
  useEffect(() => {
    if (model && conversation.settings.model === null) choose(model.id);
  });
  return (
    <section className="half" data-side={side} aria-label={t(side)}>
      <div className="half-head">
        <Select
          aria-label={t(side)} value={model?.id ?? ""} disabled={isRunning} onChange={choose}
          options={models.filter(({ served }) => served).map((each) => ({ value: each.id, label: title(each) }))}
        />
        {conversation.messages.length > 0 && (
          <IconButton
            label={t(side === "left" ? "openLeft" : "openRight")}
            onClick={() => { location.hash = `#/c/${id}`; }}
          >
            <MessageSquare aria-hidden />
          </IconButton>
        )}
      </div>
      <MessageList conversation={conversation} label={`${t(side)}: ${chat("messages")}`} empty={null} />
    </section>
  );
}
