import { useTranslation } from "react-i18next";
import { Dialog } from "../ui";
import { usePanels } from "./panels";
import { shortcutKeys } from "./shortcuts";

export function ShortcutsDialog() {
  const { t } = useTranslation("shell");
  const { open, close } = usePanels();
  const lines = [
    [t("shortcutSend"), "Enter"],
    [t("shortcutLine"), "Shift+Enter"],
    [t("shortcutStop"), "Esc"],
    [t("shortcutNew"), shortcutKeys("new")],
    [t("shortcutSearch"), shortcutKeys("search")],
    [t("shortcutSidebar"), shortcutKeys("sidebar")],
    [t("shortcutHelp"), shortcutKeys("help")],
  ];
  return (
    <Dialog open={open === "shortcuts"} onClose={close} title={t("shortcuts")} className="dialog-small">
      <dl className="shortcuts">
        {lines.map(([name, keys]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd><kbd>{keys}</kbd></dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
