import { Camera, ImagePlus, Plus } from "lucide-react";
import { useRef } from "react";
import { useTranslation } from "react-i18next";

import { IconButton, Menu, MenuItem, useMedia } from "../ui";
import { ACCEPTED } from "./pictures/kinds";

/** Opens the file chooser; on a machine with a touch screen there is the camera, too. */
export function AttachButton({ onFiles }: { onFiles: (files: File[]) => void }) {
  const { t } = useTranslation("chat");
  const files = useRef<HTMLInputElement>(null);
  const camera = useRef<HTMLInputElement>(null);
  const touches = useMedia("(any-pointer: coarse)");
  const input = (capture: boolean) => ({
    type: "file",
    hidden: true,
    accept: capture ? "image/*" : ACCEPTED,
    onChange: ({ target }: { target: HTMLInputElement }) => {
      onFiles([...(target.files ?? [])]);
      target.value = ""; // the same file may be chosen again
    },
  });
  const choose = () => files.current?.click();
  return (
    <>
      <input ref={files} multiple {...input(false)} />
      <input ref={camera} capture="environment" {...input(true)} />
      {touches ? (
        <Menu align="start" side="top" trigger={<IconButton label={t("addPictures")}><Plus aria-hidden /></IconButton>}>
          <MenuItem icon={<ImagePlus />} onSelect={choose}>{t("choosePictures")}</MenuItem>
          <MenuItem icon={<Camera />} onSelect={() => camera.current?.click()}>{t("takePhoto")}</MenuItem>
        </Menu>
      ) : (
        <IconButton label={t("addPictures")} onClick={choose}><ImagePlus aria-hidden /></IconButton>
      )}
    </>
  );
}
