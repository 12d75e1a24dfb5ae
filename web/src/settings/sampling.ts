import type { Model, Sampling } from "../api/types";
import type { NumberLimits } from "../ui/number";

export interface SamplingField extends NumberLimits {
  name: keyof Sampling;
  usual: number | null; // of the server, where the model says nothing; null: none
  slider?: { min: number; max: number; step: number };
}

/** The server's limits and defaults (docs/api.md); sliders end where sense does. */
export const SAMPLING_FIELDS: readonly SamplingField[] = [
  { name: "temperature", min: 0, max: 100, usual: 1, slider: { min: 0, max: 2, step: 0.05 } },
  { name: "top_p", min: 0.01, max: 1, usual: 1, slider: { min: 0.01, max: 1, step: 0.01 } },
  { name: "top_k", min: 0, whole: true, usual: 0 },
  { name: "min_p", min: 0, max: 1, usual: 0, slider: { min: 0, max: 1, step: 0.01 } },
  { name: "repetition_penalty", min: 0.01, max: 100, usual: 1, slider: { min: 0.5, max: 2, step: 0.05 } },
  { name: "max_tokens", min: 1, whole: true, usual: null },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, usual: null },
];

/** What a field that is left empty means for this model. */
export function defaultOf({ name, usual }: SamplingField, model: Model | undefined): number | null {
  return model?.sampling?.[name] ?? usual;
}
