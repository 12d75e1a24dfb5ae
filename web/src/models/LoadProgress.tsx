import { useTranslation } from "react-i18next";
import type { Model } from "../api/types";
import { stageText } from "../i18n/server";
import { usePreferences } from "../store/preferences";
import { Progress } from "../ui";
import { useTitle } from "./useTitle";

/** What a model that is getting ready does, and how far it is. */
export function LoadProgress({ model }: { model: Model }) {
  const { t } = useTranslation("models");
  const title = useTitle();
  const language = usePreferences((state) => state.language);
  const percent = model.progress === null ? "" : t("percent", { percent: Math.round(model.progress * 100) });
  return (
    <div className="load">
      <div className="load-text">
        <span className="load-stage">{stageText(model.status ?? t("stateLoading"), language)}</span>
        <span className="load-percent">{percent}</span>
      </div>
      <Progress value={model.progress} label={t("progress", { model: title(model) })} />
    </div>
  );
}

/** The same as a thin line under the header. */
export function LoadStrip({ model }: { model: Model }) {
  const { t } = useTranslation("models");
  const title = useTitle();
  return (
    <div className="load-strip">
      <Progress value={model.progress} label={t("progress", { model: title(model) })} />
    </div>
  );
}
