import { Check, Download, Eye, Languages, Play, Plus, Power, RotateCcw, Square, Type } from "lucide-react";
import { useState } from "react";
import { useTranslation } from "react-i18next";
import { OfflineError } from "../api/client";
import type { Model } from "../api/types";
import { problemText } from "../i18n/server";
import { formatBytes, formatDownload } from "../shell/format";
import { report } from "../shell/report";
import { useChats } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { sees, useSession } from "../store/session";
import { Button } from "../ui";
import { act, type ModelAction } from "./actions";
import { isEnglishOnly, planText, sightKey, stateKey } from "./describe";
import { LoadProgress } from "./LoadProgress";
import { StateDot } from "./ModelPicker";
import { useTitle } from "./useTitle";

export interface ModelCardProps {
  model: Model;
  isChosen: boolean;
  onUse: () => void;
}

/** A model: what it can do, what it needs, what it is doing, and what can be done with it. */
export function ModelCard({ model, isChosen, onUse }: ModelCardProps) {
  const { t } = useTranslation("models");
  const title = useTitle();
  const language = usePreferences((state) => state.language);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState<ModelAction | null>(null);
  const run = async (action: ModelAction) => {
    setBusy(action);
    setProblem(null);
    try {
      await act(action, model.id);
    } catch (error) {
      // A long answer that breaks off says nothing: the session tells what came of it.
      if (!(error instanceof OfflineError)) setProblem(problemText(error, language));
    }
    setBusy(null);
  };
  const fault = problem ?? (model.state === "failed" ? model.status : null);
  return (
    <li className="card" data-chosen={isChosen || undefined}>
      <div className="card-head">
        <div className="card-name">
          <h4>{title(model)}</h4>
          <code className="card-id">{model.id}</code>
        </div>
        <span className="card-state">
          <StateDot model={model} />
          {t(stateKey(model))}
        </span>
      </div>
      <Facts model={model} />
      <Plan model={model} />
      {model.state === "loading" && <LoadProgress model={model} />}
      {fault && <p className="card-fault" role="alert">{fault}</p>}
      <Actions model={model} isChosen={isChosen} busy={busy} run={(action) => void run(action)} onUse={onUse} />
    </li>
  );
}

function Facts({ model }: { model: Model }) {
  const { t } = useTranslation("models");
  const tokens = model.max_model_len;
  return (
    <ul className="facts">
      <li>
        {sees(model) ? <Eye aria-hidden="true" /> : <Type aria-hidden="true" />}
        {t(sightKey(model))}
      </li>
      {isEnglishOnly(model) && (
        <li title={t("onlyEnglishText")}><Languages aria-hidden="true" />{t("onlyEnglish")}</li>
      )}
      {tokens !== null && <li>{t("context", { tokens: tokens.toLocaleString() })}</li>}
      {model.shipped && <li>{t("shipped")}</li>}
    </ul>
  );
}

function Plan({ model }: { model: Model }) {
  const { t } = useTranslation("models");
  const plan = planText(model);
  if (!plan && model.memory_bytes === null) return null;
  const inUse = model.memory_bytes !== null && t("inUse", { bytes: formatBytes(model.memory_bytes) });
  return (
    <p className={model.plan?.fits === false ? "plan plan-over" : "plan"}>
      {[plan && t(plan.key, plan.values), inUse].filter(Boolean).join(" · ")}
    </p>
  );
}

const STEPS = {
  loaded: { action: "unload", text: "unload", Icon: Power },
  loading: { action: "unload", text: "stop", Icon: Square },
  unloaded: { action: "load", text: "load", Icon: Play },
  failed: { action: "load", text: "retry", Icon: RotateCcw },
  absent: { action: "load", text: "load", Icon: Play },
} as const;

interface ActionsProps extends ModelCardProps {
  busy: ModelAction | null;
  run: (action: ModelAction) => void;
}

function Actions({ model, isChosen, busy, run, onUse }: ActionsProps) {
  const { t } = useTranslation("models");
  const canPull = useSession((state) => state.canPull);
  const use = () => {
    onUse();
    void report(useChats.getState().chooseModel(model.id));
  };
  if (!model.served) {
    const isHere = model.installed || model.shipped;
    const label = isHere ? t("add") : t("download", { size: formatDownload(model.download_bytes) });
    return (
      <div className="card-actions">
        <Button small disabled={!canPull} busy={busy === "pull"} onClick={() => run("pull")}>
          {isHere ? <Plus aria-hidden="true" /> : <Download aria-hidden="true" />}
          {label}
        </Button>
      </div>
    );
  }
  const step = STEPS[model.state];
  return (
    <div className="card-actions">
      {isChosen
        ? <span className="card-chosen"><Check aria-hidden="true" />{t("used")}</span>
        : <Button small onClick={use}>{t("use")}</Button>}
      <Button small variant="ghost" busy={busy === step.action} onClick={() => run(step.action)}>
        <step.Icon aria-hidden="true" />
        {t(step.text)}
      </Button>
    </div>
  );
}
