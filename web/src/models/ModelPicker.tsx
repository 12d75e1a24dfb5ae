import { Check, ChevronDown, Eye, SlidersVertical } from "lucide-react";
import { DropdownMenu } from "radix-ui";
import { useTranslation } from "react-i18next";
import type { Model } from "../api/types";
import { report } from "../shell/report";
import { usePanels } from "../shell/panels";
import { useChats, useModelOf } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { sees, useSession } from "../store/session";
import { Menu, MenuItem, MenuSeparator } from "../ui";
import { isEnglishOnly, sightKey, stateKey } from "./describe";
import { LoadStrip } from "./LoadProgress";
import { useTitle } from "./useTitle";

/** The model of the conversation, and a menu of those that are served. */
export function ModelPicker() {
  const { t } = useTranslation("models");
  const { models, status, refreshSoon } = useSession();
  const model = useModelOf(useChats((state) => state.current));
  const show = usePanels((state) => state.show);
  const served = models.filter((each) => each.served);
  const title = useTitle();
  const name = model ? title(model) : t(status === "online" ? "none" : "model");
  const isLoading = model?.state === "loading";
  const isForeign = usePreferences((state) => state.language) !== "en" && model && isEnglishOnly(model);
  const trigger = (
    <button
      type="button"
      className="picker"
      aria-label={`${t("choose")}: ${name}${isLoading ? `, ${t("stateLoading")}` : ""}`}
    >
      {model && <StateDot model={model} />}
      <span className="truncate">{name}</span>
      {isLoading && model.progress !== null && (
        <span className="picker-percent">{t("percent", { percent: Math.round(model.progress * 100) })}</span>
      )}
      {isForeign && <span className="picker-note" title={t("onlyEnglishText")}>{t("onlyEnglish")}</span>}
      {sees(model) && <Eye aria-hidden="true" className="picker-eye" />}
      <ChevronDown aria-hidden="true" className="picker-arrow" />
    </button>
  );
  return (
    <div className="picker-place">
      <Menu trigger={trigger} align="start" className="picker-menu" onOpenChange={(open) => open && refreshSoon()}>
        <DropdownMenu.RadioGroup
          aria-label={t("choose")}
          value={model?.id ?? ""}
          onValueChange={(id) => void report(useChats.getState().chooseModel(id))}
        >
          {served.map((each) => <PickerItem key={each.id} model={each} />)}
        </DropdownMenu.RadioGroup>
        <MenuSeparator />
        <MenuItem icon={<SlidersVertical />} onSelect={() => show("models")}>{t("manage")}</MenuItem>
      </Menu>
      {isLoading && <LoadStrip model={model} />}
    </div>
  );
}

function PickerItem({ model }: { model: Model }) {
  const { t } = useTranslation("models");
  const title = useTitle();
  const facts = [t(sightKey(model))];
  if (isEnglishOnly(model)) facts.push(t("onlyEnglish"));
  facts.push(t(model.plan?.fits === false ? "needsTooMuchShort" : stateKey(model)));
  return (
    <DropdownMenu.RadioItem className="menu-item picker-item" value={model.id}>
      <StateDot model={model} />
      <span className="menu-text">
        <span className="picker-name">{title(model)}</span>
        <span className="picker-facts">{facts.join(" · ")}</span>
      </span>
      <DropdownMenu.ItemIndicator className="menu-check"><Check aria-hidden="true" /></DropdownMenu.ItemIndicator>
    </DropdownMenu.RadioItem>
  );
}

/** Decoration: the state stands beside it in words, or in the picker's menu. */
export function StateDot({ model }: { model: Model }) {
  return <span className={`dot dot-${model.state}`} aria-hidden="true" />;
}
