import { memo } from "react";
import { useTranslation } from "react-i18next";

import type { AnswerStats } from "../api/types";
import { useSession } from "../store/session";
import { tokensPerSecond } from "../store/stats";

/** What an answer took, and how full the context is. */
export const Stats = memo(function Stats({ model, stats }: { model: string | null; stats: AnswerStats | null }) {
  const { t, i18n } = useTranslation("chat");
  const limit = useSession(({ models }) => models.find(({ id }) => id === model)?.max_model_len ?? null);
  const number = (value: number) => (
    new Intl.NumberFormat(i18n.language, { maximumSignificantDigits: value < 100 ? 2 : 3 }).format(value));
  const speed = stats && tokensPerSecond(stats);
  return (
    <div className="stats">
      {model && <span className="stats-model truncate">{model}</span>}
      {speed !== null && <span title={t("speedTitle")}>{t("speed", { value: number(speed) })}</span>}
      {stats && (
        <>
          <span title={t("firstTokenTitle")}>{t("firstToken", { value: number(stats.first_token_seconds) })}</span>
          <span title={t("cachedTitle", { prompt: stats.prompt_tokens, cached: stats.cached_tokens })}>
            {t("tokens", { count: stats.completion_tokens })}
          </span>
        </>
      )}
      {stats && limit !== null && <Gauge used={stats.prompt_tokens + stats.completion_tokens} most={limit} />}
    </div>
  );
});

const ALMOST_FULL = 0.85;
const RADIUS = 6;
const ROUND = 2 * Math.PI * RADIUS;

/** A ring that fills. */
function Gauge({ used, most }: { used: number; most: number }) {
  const { t, i18n } = useTranslation("chat");
  const share = Math.min(1, used / most);
  const isAlmostFull = share >= ALMOST_FULL;
  const format = new Intl.NumberFormat(i18n.language);
  const text = t(isAlmostFull ? "contextAlmostFull" : "context", { used: format.format(used), most: format.format(most) });
  return (
    <span
      className={isAlmostFull ? "gauge gauge-full" : "gauge"} title={text} role="meter" aria-label={text}
      aria-valuemin={0} aria-valuemax={most} aria-valuenow={Math.min(used, most)}
    >
      <svg viewBox="0 0 16 16" aria-hidden>
        <circle cx="8" cy="8" r={RADIUS} />
        <circle cx="8" cy="8" r={RADIUS} strokeDasharray={`${share * ROUND} ${ROUND}`} transform="rotate(-90 8 8)" />
      </svg>
      {new Intl.NumberFormat(i18n.language, { style: "percent" }).format(share)}
    </span>
  );
}
