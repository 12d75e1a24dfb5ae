import { ImageOff, X } from "lucide-react";
import { useState } from "react";
import { useTranslation } from "react-i18next";

import type { Picture } from "../../api/types";
import { IconButton, Spinner } from "../../ui";
import { Lightbox } from "./Lightbox";
import "./pictures.css";
import { usePictureUrl } from "./usePictureUrl";

export interface Shown {
  key: string;
  name: string;
  id: string | null; // with the server
  file: Blob | null; // here
}

/** Pictures of a message, all with the server; one may be there twice. */
export function shownPictures(pictures: readonly Picture[]): Shown[] {
  return pictures.map(({ id, name }, place) => ({ key: String(place), name, id, file: null }));
}

export interface ThumbnailsProps {
  pictures: readonly Shown[];
  label: string;
  large?: boolean;
  onRemove?: (key: string) => void;
}

/** Small pictures in a row; a click shows one as large as there is room. */
export function Thumbnails({ pictures, label, large = false, onRemove }: ThumbnailsProps) {
  const [open, setOpen] = useState<number | null>(null);
  if (pictures.length === 0) return null;
  return (
    <>
      <ul className={large ? "thumbnails thumbnails-large" : "thumbnails"} aria-label={label}>
        {pictures.map((picture, place) => (
          <Thumbnail
            key={picture.key}
            picture={picture}
            place={place}
            onOpen={() => setOpen(place)}
            onRemove={onRemove && (() => onRemove(picture.key))}
          />
        ))}
      </ul>
      {open !== null && (
        <Lightbox pictures={pictures} place={open} onMove={setOpen} onClose={() => setOpen(null)} />
      )}
    </>
  );
}

interface ThumbnailProps {
  picture: Shown;
  place: number;
  onOpen: () => void;
  onRemove?: () => void;
}

function Thumbnail({ picture, place, onOpen, onRemove }: ThumbnailProps) {
  const { t } = useTranslation("chat");
  const url = usePictureUrl(picture.id, picture.file);
  const name = picture.name || t("picture", { number: place + 1 });
  return (
    <li className="thumbnail">
      <button type="button" className="thumbnail-open" aria-label={t("enlarge", { name })} title={name} onClick={onOpen}>
        {url ? <img src={url} alt={name} draggable={false} /> : <Missing isGone={url === ""} />}
        {picture.id === null && <span className="thumbnail-busy" title={t("uploading")}><Spinner /></span>}
      </button>
      {onRemove && (
        <IconButton small className="thumbnail-remove" label={t("remove", { name })} onClick={onRemove}>
          <X aria-hidden />
        </IconButton>
      )}
    </li>
  );
}

function Missing({ isGone }: { isGone: boolean }) {
  const { t } = useTranslation("chat");
  return <span className="thumbnail-missing">{isGone ? <ImageOff aria-label={t("pictureGone")} /> : <Spinner />}</span>;
}
