import { Monitor, Moon, Sun } from "lucide-react";
import { useTranslation } from "react-i18next";
import { setKey } from "../api/client";
import { usePanels } from "../shell/panels";
import { go } from "../shell/route";
import { usePreferences } from "../store/preferences";
import { useSession } from "../store/session";
import { Button, Choice } from "../ui";

/** What this browser keeps: language, theme, the key. */
export function PageSettings() {
  const { t } = useTranslation(["settings", "shell"]);
  const { language, theme, set } = usePreferences();
  const version = useSession((state) => state.version);
  const show = usePanels((state) => state.show);
  return (
    <>
      <Choice
        label={t("language")}
        value={language}
        options={[
          { value: "en", label: <span lang="en">English</span> },
          { value: "zh", label: <span lang="zh-CN">中文</span> },
        ]}
        onChange={(next) => set({ language: next })}
      />
      <Choice
        label={t("theme")}
        value={theme}
        options={[
          { value: "system", label: <><Monitor aria-hidden="true" />{t("shell:themeSystem")}</> },
          { value: "light", label: <><Sun aria-hidden="true" />{t("shell:themeLight")}</> },
          { value: "dark", label: <><Moon aria-hidden="true" />{t("shell:themeDark")}</> },
        ]}
        onChange={(next) => set({ theme: next })}
      />
      <KeySettings />
      <div className="settings-foot">
        <p className="muted small">{version && version !== "unknown" && t("version", { version })}</p>
        <Button small variant="ghost" onClick={() => show("shortcuts")}>{t("shell:shortcuts")}</Button>
      </div>
    </>
  );
}

// Where api/client keeps it.
const hasKey = (): boolean => [sessionStorage, localStorage].some((store) => store.getItem("shuzhai.key") !== null);

function KeySettings() {
  const { t } = useTranslation("settings");
  if (!hasKey()) return null;
  const forget = () => {
    setKey(null);
    go("#/");
    location.reload(); // nothing of the key's owner stays on the screen
  };
  return (
    <section className="stack">
      <h3>{t("key")}</h3>
      <p className="muted small">{t("keyText")}</p>
      <Button small className="reset-all" onClick={forget}>{t("keyForget")}</Button>
    </section>
  );
}
