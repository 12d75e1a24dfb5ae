import type { Model } from "../api/types";
import { titleText } from "../i18n/server";
import { usePreferences } from "../store/preferences";

/** How models are called in the language of the page. */
export function useTitle(): (model: Model) => string {
  const language = usePreferences((state) => state.language);
  return ({ title }) => titleText(title, language);
}
