import { ChevronLeft, ChevronRight, X } from "lucide-react";
import { useEffect } from "react";
import { useTranslation } from "react-i18next";

import { Dialog, IconButton } from "../../ui";
import type { Shown } from "./Thumbnails";
import { usePictureUrl } from "./usePictureUrl";

interface LightboxProps {
  pictures: readonly Shown[];
  place: number;
  onMove: (place: number) => void;
  onClose: () => void;
}

/** One picture as large as there is room. */
export function Lightbox({ pictures, place, onMove, onClose }: LightboxProps) {
  const { t } = useTranslation("chat");
  const picture = pictures[place];
  const url = usePictureUrl(picture?.id ?? null, picture?.file);
  const count = pictures.length;
  const move = (by: number) => onMove((place + by + count) % count);
  useEffect(() => {
    const onKeyDown = ({ key }: KeyboardEvent) => {
      if (key === "ArrowLeft") move(-1);
      if (key === "ArrowRight") move(1);
    };
    document.addEventListener("keydown", onKeyDown);
    return () => document.removeEventListener("keydown", onKeyDown);
  });
  const name = picture?.name || t("picture", { number: place + 1 });
  return (
    <Dialog open onClose={onClose} title={name} plain className="lightbox">
      {url && <img src={url} alt={name} draggable={false} />}
      <div className="lightbox-bar">
        {count > 1 && <IconButton label={t("previous")} onClick={() => move(-1)}><ChevronLeft aria-hidden /></IconButton>}
        <span className="lightbox-name">{name}{count > 1 && ` · ${place + 1}/${count}`}</span>
        {count > 1 && <IconButton label={t("next")} onClick={() => move(1)}><ChevronRight aria-hidden /></IconButton>}
        <IconButton label={t("close")} onClick={onClose}><X aria-hidden /></IconButton>
      </div>
    </Dialog>
  );
}
