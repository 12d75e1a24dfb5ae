import { useEffect } from "react";
import { useTranslation } from "react-i18next";
import type { Model } from "../api/types";
import { formatBytes } from "../shell/format";
import { usePanels } from "../shell/panels";
import { useChats, useModelOf } from "../store/chats";
import { useSession } from "../store/session";
import { Dialog } from "../ui";
import { memoryOf } from "./describe";
import { ModelCard } from "./ModelCard";

/** All models: those that are served, in how much memory, and what the catalog has besides. */
export function ModelsDialog() {
  const { t } = useTranslation("models");
  const { open, close } = usePanels();
  const isOpen = open === "models";
  const { models, canPull, refreshSoon } = useSession();
  useEffect(() => {
    if (isOpen) refreshSoon();
  }, [isOpen, refreshSoon]);
  const served = models.filter((model) => model.served);
  const others = models.filter((model) => !model.served);
  return (
    <Dialog open={isOpen} onClose={close} title={t("title")} className="dialog-wide dialog-sheet dialog-models">
      <MemoryBar models={models} />
      <section className="stack" aria-labelledby="models-served">
        <h3 id="models-served">{t("servedHere")}</h3>
        {served.length ? <Cards models={served} onUse={close} /> : <p className="muted">{t("nothingServed")}</p>}
      </section>
      {others.length > 0 && (
        <section className="stack" aria-labelledby="models-catalog">
          <h3 id="models-catalog">{t("catalog")}</h3>
          {!canPull && <p className="muted small">{t("noPull")}</p>}
          <Cards models={others} onUse={close} />
        </section>
      )}
    </Dialog>
  );
}

function Cards({ models, onUse }: { models: Model[]; onUse: () => void }) {
  const chosen = useModelOf(useChats((state) => state.current));
  return (
    <ul className="cards">
      {models.map((model) => (
        <ModelCard key={model.id} model={model} isChosen={model.id === chosen?.id} onUse={onUse} />
      ))}
    </ul>
  );
}

function MemoryBar({ models }: { models: Model[] }) {
  const { t } = useTranslation("models");
  const memory = memoryOf(models);
  if (!memory) return null;
  const { used, budget } = memory;
  const text = t("memoryUsed", { used: formatBytes(used), budget: formatBytes(budget) });
  return (
    <div className="memory">
      <div className="memory-text">
        <span id="memory-name">{t("memory")}</span>
        <span>{text}</span>
      </div>
      <div
        className="meter"
        role="meter"
        aria-labelledby="memory-name"
        aria-valuemin={0}
        aria-valuemax={budget}
        aria-valuenow={used}
        aria-valuetext={text}
      >
        <div className="meter-used" style={{ width: `${Math.min(1, used / budget) * 100}%` }} />
      </div>
    </div>
  );
}
