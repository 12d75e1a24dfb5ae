import {
  Columns2, Ellipsis, Keyboard, Languages, Monitor, Moon, PanelLeft, Settings, SquarePen, Sun,
} from "lucide-react";
import { useTranslation } from "react-i18next";
import { ModelPicker } from "../models/ModelPicker";
import { usePreferences, type Theme } from "../store/preferences";
import { Button, IconButton, Menu, MenuChoice, MenuItem, MenuLabel, MenuSeparator, PHONE, useMedia } from "../ui";
import { usePanels } from "./panels";
import { go, useRoute } from "./route";
import { shortcutKeys, toggleSidebar } from "./shortcuts";

export function Header() {
  const { t } = useTranslation("shell");
  const isPhone = useMedia(PHONE);
  const { page } = useRoute();
  const sidebarOpen = usePreferences((state) => state.sidebarOpen);
  const isHidden = isPhone || !sidebarOpen;
  return (
    <header className="header">
      {isHidden && (
        <IconButton label={t("openSidebar")} onClick={toggleSidebar}><PanelLeft /></IconButton>
      )}
      {isHidden && !isPhone && (
        <IconButton label={`${t("newChat")} (${shortcutKeys("new")})`} onClick={() => go("#/")}>
          <SquarePen />
        </IconButton>
      )}
      <div className="header-main">
        {page === "compare"
          ? <span className="header-title truncate" aria-hidden="true">{t("compare")}</span>
          : <ModelPicker />}
      </div>
      {isPhone ? <PhoneMenu /> : <Tools />}
    </header>
  );
}

function Tools() {
  const { t } = useTranslation("shell");
  const { page } = useRoute();
  const theme = usePreferences((state) => state.theme);
  const show = usePanels((state) => state.show);
  const isComparing = page === "compare";
  return (
    <>
      {isComparing ? (
        <Button small variant="ghost" onClick={() => go("#/")}>{t("backToChat")}</Button>
      ) : (
        <IconButton label={t("compare")} onClick={() => go("#/compare")}><Columns2 /></IconButton>
      )}
      <LanguageButton />
      <Menu trigger={<IconButton label={t("theme")}>{THEME_ICONS[theme]}</IconButton>}>
        <ThemeChoice />
      </Menu>
      <IconButton label={t("settings")} onClick={() => show("settings")}><Settings /></IconButton>
    </>
  );
}

const THEME_ICONS: Record<Theme, React.ReactNode> = { system: <Monitor />, light: <Sun />, dark: <Moon /> };

function ThemeChoice() {
  const { t } = useTranslation("shell");
  const { theme, set } = usePreferences();
  return (
    <MenuChoice
      label={t("theme")}
      value={theme}
      options={[
        { value: "system", label: t("themeSystem") },
        { value: "light", label: t("themeLight") },
        { value: "dark", label: t("themeDark") },
      ]}
      onChange={(next) => set({ theme: next })}
    />
  );
}

/** Named in the other language: whoever looks for it may not read this one. */
function LanguageButton() {
  const { t } = useTranslation("shell");
  const { language, set } = usePreferences();
  const other = language === "zh" ? "en" : "zh";
  return (
    <Button
      small
      variant="ghost"
      className="language"
      lang={other === "zh" ? "zh-CN" : "en"}
      onClick={() => set({ language: other })}
    >
      {t("otherLanguage")}
    </Button>
  );
}

function PhoneMenu() {
  const { t } = useTranslation("shell");
  const { page } = useRoute();
  const { language, set } = usePreferences();
  const show = usePanels((state) => state.show);
  const isComparing = page === "compare";
  return (
    <>
      <IconButton label={t("newChat")} onClick={() => go("#/")}><SquarePen /></IconButton>
      <Menu trigger={<IconButton label={t("moreActions")}><Ellipsis /></IconButton>}>
        <MenuItem icon={<Columns2 />} onSelect={() => go(isComparing ? "#/" : "#/compare")}>
          {isComparing ? t("backToChat") : t("compare")}
        </MenuItem>
        <MenuItem icon={<Settings />} onSelect={() => show("settings")}>{t("settings")}</MenuItem>
        <MenuItem icon={<Keyboard />} onSelect={() => show("shortcuts")}>{t("shortcuts")}</MenuItem>
        <MenuItem icon={<Languages />} onSelect={() => set({ language: language === "zh" ? "en" : "zh" })}>
          <span lang={language === "zh" ? "en" : "zh-CN"}>{t("otherLanguage")}</span>
        </MenuItem>
        <MenuSeparator />
        <MenuLabel>{t("theme")}</MenuLabel>
        <ThemeChoice />
      </Menu>
    </>
  );
}
