import { RotateCcw } from "lucide-react";
import { useState, type ReactNode } from "react";
import { useTranslation } from "react-i18next";

import type { Picture } from "../api/types";
import { Composer } from "../chat/Composer";
import { useDraft } from "../chat/drafts";
import { problemText } from "../i18n/server";
import { useTitle } from "../models/useTitle";
import { useAnswers } from "../store/answers";
import { change, useModelOf } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { sees } from "../store/session";
import { titleOf } from "../tree";
import { Button, Choice, PHONE, Spinner, useMedia, useToasts } from "../ui";
import "../chat/chat.css";
import "./compare.css";
import { Half } from "./Half";
import { SIDES, useCompared, type Compared, type Side } from "./pair";

const DRAFT = "compare";

/** The same questions to two models, side by side. */
export function CompareView() {
  const { pair, restart } = useCompared();
  if (!pair) return <div className="nothing"><Spinner /></div>;
  return <Comparison pair={pair} restart={restart} />;
}

type Halves = NonNullable<Compared["pair"]>;

function Comparison({ pair, restart }: { pair: Halves; restart: () => void }) {
  const { t } = useTranslation("compare");
  const [shown, setShown] = useState<Side>("left"); // where there is room for one
  const isPhone = useMedia(PHONE);
  const models = { left: useModelOf(pair.left), right: useModelOf(pair.right) };
  const running = useAnswers((state) => state.running);
  const isRunning = SIDES.some((side) => pair[side].id in running);
  const blocked = useBlocked(pair, models);
  const hasBegun = SIDES.some((side) => pair[side].messages.length > 0);
  const send = useSendBoth(pair, models);
  const stop = () => SIDES.forEach((side) => useAnswers.getState().stop(pair[side].id));
  return (
    <div className="compare">
      <h2 className="visually-hidden">{t("title")}</h2>
      {isPhone && (
        <Choice
          label={t("show")} hiddenLabel value={shown} onChange={setShown}
          options={SIDES.map((side) => ({ value: side, label: models[side]?.id ?? t(side) }))}
        />
      )}
      <div className="compare-halves" data-shown={isPhone ? shown : undefined}>
        {SIDES.map((side) => <Half key={side} side={side} conversation={pair[side]} />)}
      </div>
      {!hasBegun && (
        <div className="compare-empty">
          <h3>{t("welcome")}</h3>
          <p>{t("welcomeText")}</p>
        </div>
      )}
      {hasBegun && (
        <Button small variant="ghost" className="compare-again" disabled={isRunning} onClick={restart}>
          <RotateCcw aria-hidden />{t("again")}
        </Button>
      )}
      <Composer
        draftId={DRAFT} placeholder={t("ask")} isRunning={isRunning} blocked={blocked} onSend={send} onStop={stop}
      />
    </div>
  );
}

type Models = Record<Side, ReturnType<typeof useModelOf>>;

/** Why the question cannot go to both. */
function useBlocked(pair: Halves, models: Models): ReactNode {
  const { t } = useTranslation("compare");
  const title = useTitle();
  const { pictures } = useDraft(DRAFT);
  const blind = SIDES.map((side) => models[side]).find((model) => model && !sees(model));
  const isShown = pictures.length > 0
    || SIDES.some((side) => pair[side].messages.some((message) => message.pictures.length > 0));
  return blind && isShown ? t("blind", { model: title(blind) }) : null;
}

function useSendBoth(pair: Halves, models: Models) {
  const language = usePreferences((state) => state.language);
  return async (text: string, pictures: Picture[]): Promise<Error | null> => {
    const refusals = await Promise.all(SIDES.map((side) => {
      const { id } = pair[side];
      const title = [models[side]?.id, titleOf(text)].filter(Boolean).join(" · ");
      change(id, (each) => ({ ...each, title: each.title || title }));
      return useAnswers.getState().send(id, text, pictures);
    }));
    const [first, second] = refusals;
    if (first && second) return first;
    const one = first ?? second; // the other has the question: it is not to be asked again
    if (one) useToasts.getState().say(problemText(one, language), "error");
    return null;
  };
}
