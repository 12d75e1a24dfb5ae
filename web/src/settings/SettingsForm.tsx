import { RotateCcw } from "lucide-react";
import { useId, useState } from "react";
import { useTranslation } from "react-i18next";
import type { ChatSettings, Model } from "../api/types";
import { useTitle } from "../models/useTitle";
import { NO_SETTINGS } from "../store/preferences";
import { Button, Choice, NumberField, TextArea } from "../ui";
import { defaultOf, SAMPLING_FIELDS, type SamplingField } from "./sampling";

export interface SettingsFormProps {
  settings: ChatSettings;
  model: Model | undefined; // whose defaults are shown
  onChange: (settings: ChatSettings) => void;
}

/** System prompt and sampling, of a conversation or of new ones. */
export function SettingsForm({ settings, model, onChange }: SettingsFormProps) {
  const { t } = useTranslation("settings");
  const title = useTitle();
  const { system, sampling } = settings;
  const isOwn = system === null && Object.values(sampling).every((value) => value === null);
  return (
    <>
      <SystemPrompt system={system} onChange={(next) => onChange({ ...settings, system: next })} />
      <section className="stack" aria-labelledby="sampling-title">
        <div>
          <h3 id="sampling-title">{t("sampling")}</h3>
          <p className="muted small">{t("samplingText", { model: model ? title(model) : t("model") })}</p>
        </div>
        <div className="sampling">
          {SAMPLING_FIELDS.map((field) => (
            <SamplingInput
              key={field.name}
              field={field}
              model={model}
              value={sampling[field.name]}
              onChange={(value) => onChange({ ...settings, sampling: { ...sampling, [field.name]: value } })}
            />
          ))}
        </div>
      </section>
      <Button
        small
        className="reset-all"
        disabled={isOwn}
        onClick={() => onChange({ ...settings, system: null, sampling: NO_SETTINGS.sampling })}
      >
        <RotateCcw aria-hidden="true" />
        {t("resetAll")}
      </Button>
    </>
  );
}

type SystemKind = "own" | "none" | "custom";

function SystemPrompt({ system, onChange }: { system: string | null; onChange: (system: string | null) => void }) {
  const { t } = useTranslation("settings");
  const id = useId();
  // An empty prompt of one's own is none; while it is written it stays one's own.
  const [isWriting, setWriting] = useState(false);
  const kind: SystemKind = system === null ? "own" : system || isWriting ? "custom" : "none";
  const choose = (next: SystemKind) => {
    setWriting(next === "custom");
    if (next === "own") onChange(null);
    else if (next === "none") onChange("");
    else if (system === null) onChange("");
  };
  return (
    <div className="stack">
      <Choice
        label={t("system")}
        value={kind}
        onChange={choose}
        options={[
          { value: "own", label: t("systemOwn") },
          { value: "none", label: t("systemNone") },
          { value: "custom", label: t("systemCustom") },
        ]}
      />
      {kind === "custom" ? (
        <TextArea
          id={id}
          aria-label={t("system")}
          value={system ?? ""}
          placeholder={t("systemPlaceholder")}
          rows={4}
          maxLength={100_000}
          onChange={(event) => onChange(event.target.value)}
        />
      ) : (
        <p className="muted small">{t(kind === "own" ? "systemOwnText" : "systemNoneText")}</p>
      )}
    </div>
  );
}

interface SamplingInputProps {
  field: SamplingField;
  model: Model | undefined;
  value: number | null;
  onChange: (value: number | null) => void;
}

function SamplingInput({ field, model, value, onChange }: SamplingInputProps) {
  const { t } = useTranslation("settings");
  const { name, slider } = field;
  const usual = defaultOf(field, model);
  const unset = name === "seed" ? t("seedDefault") : t("max_tokensDefault");
  return (
    <NumberField
      label={t(name)}
      hint={t(`${name}Hint`)}
      value={value}
      min={field.min}
      max={field.max}
      whole={field.whole}
      placeholder={usual === null ? unset : String(usual)}
      slider={slider && { ...slider, at: usual ?? 1 }}
      onChange={onChange}
    />
  );
}
