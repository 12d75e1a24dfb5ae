import { RotateCcw } from "lucide-react";
import { useEffect, useState, type ReactNode } from "react";
import { useTranslation } from "react-i18next";
import { Field, Input } from "./Field";
import { IconButton } from "./IconButton";
import { readNumber, type NumberLimits } from "./number";

export interface NumberFieldProps extends NumberLimits {
  label: string;
  hint?: ReactNode;
  value: number | null; // null: the default, which the placeholder shows
  placeholder?: string;
  slider?: { at: number; min: number; max: number; step: number }; // also one, which stands at `at` without a value
  onChange: (value: number | null) => void;
}

function shareOf(at: number, { min, max }: { min: number; max: number }): number {
  return Math.min(1, Math.max(0, (at - min) / (max - min)));
}

/** A number, or nothing. What is no number, or outside of the limits, is said and not handed on. */
export function NumberField(props: NumberFieldProps) {
  const { label, hint, value, placeholder, slider, onChange, ...limits } = props;
  const { t } = useTranslation("ui");
  const [text, setText] = useState(value === null ? "" : String(value));
  const read = readNumber(text, limits);
  // What was typed stays as it was typed ("0." on the way to "0.5") until another value comes.
  useEffect(() => {
    setText((shown) => (readNumber(shown, limits).value === value ? shown : value === null ? "" : String(value)));
  }, [value]);
  const type = (next: string) => {
    setText(next);
    const { value: number, fault } = readNumber(next, limits);
    if (!fault && number !== value) onChange(number);
  };
  const error = read.fault && t(read.fault, { min: limits.min, max: limits.max });
  const reset = value !== null && (
    <IconButton small label={t("reset", { label })} onClick={() => type("")}><RotateCcw /></IconButton>
  );
  return (
    <Field label={label} hint={hint} error={error} aside={reset}>
      {(wiring) => (
        <div className="number-row">
          {slider && (
            <input
              type="range"
              className="slider"
              aria-label={label}
              min={slider.min}
              max={slider.max}
              step={slider.step}
              value={value ?? slider.at}
              style={{ "--share": shareOf(value ?? slider.at, slider) }}
              data-default={value === null || undefined}
              onChange={(event) => type(event.target.value)}
            />
          )}
          <Input
            {...wiring}
            inputMode={limits.whole ? "numeric" : "decimal"}
            className="number-input"
            value={text}
            placeholder={placeholder}
            onChange={(event) => type(event.target.value)}
          />
        </div>
      )}
    </Field>
  );
}
