import { useTranslation } from "react-i18next";

import { useChats } from "../store/chats";
import { Button, Spinner } from "../ui";
import "./chat.css";
import { Column } from "./Column";

/** The conversation that is shown, or why there is none. */
export function ChatView() {
  const { t } = useTranslation("chat");
  const current = useChats((state) => state.current);
  const problem = useChats((state) => state.problem);
  if (current) return <Column conversation={current} />;
  if (problem === null) {
    return <div className="nothing" role="status"><Spinner /><span className="visually-hidden">{t("opening")}</span></div>;
  }
  const isMissing = problem === "missing";
  return (
    <div className="nothing">
      <h2>{t(isMissing ? "missing" : "cannotOpen")}</h2>
      {isMissing && <p>{t("missingText")}</p>}
      {isMissing
        ? <Button onClick={() => { location.hash = "#/"; }}>{t("newChat")}</Button>
        : <Button onClick={() => void useChats.getState().retry()}>{t("retry")}</Button>}
    </div>
  );
}
