import "./theme.css";
import "./ui/ui.css";
import "./shell/shell.css";
import "./models/models.css";
import "./settings/settings.css";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import { startTexts } from "./i18n";
import { followTheme, usePreferences } from "./store/preferences";

startTexts(usePreferences.getState().language);
followTheme();

const root = document.getElementById("root");
if (root) createRoot(root).render(<StrictMode><App /></StrictMode>);

if (import.meta.env.PROD && "serviceWorker" in navigator) {
  // Without a secure context (plain http to another machine) there is none, and the page works.
  navigator.serviceWorker.register("sw.js").catch(() => undefined);
}
