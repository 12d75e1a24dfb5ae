import { Eye, EyeOff } from "lucide-react";
import { useEffect, useRef, useState, type FormEvent } from "react";
import { useTranslation } from "react-i18next";
import { onKeyNeeded, setKey } from "../api/client";
import { Button, Dialog, Field, IconButton, Input } from "../ui";

/** Asks for the API key whenever a request needs one. */
export function KeyDialog() {
  const { t } = useTranslation("shell");
  const [isOpen, setOpen] = useState(false);
  const [isRefused, setRefused] = useState(false);
  const answer = useRef<((given: boolean) => void) | null>(null);
  const wasGiven = useRef(false);

  useEffect(() => {
    onKeyNeeded(() => new Promise((resolve) => {
      answer.current = resolve;
      setRefused(wasGiven.current);
      setOpen(true);
    }));
  }, []);

  const end = (given: boolean) => {
    setOpen(false);
    wasGiven.current = given;
    answer.current?.(given);
    answer.current = null;
  };
  return (
    <Dialog
      open={isOpen}
      onClose={() => end(false)}
      title={t("keyTitle")}
      description={t("keyText")}
      className="dialog-small"
    >
      <KeyForm isRefused={isRefused} onEnd={end} />
    </Dialog>
  );
}

function KeyForm({ isRefused, onEnd }: { isRefused: boolean; onEnd: (given: boolean) => void }) {
  const { t } = useTranslation(["shell", "ui"]);
  const [text, setText] = useState("");
  const [isShown, setShown] = useState(false);
  const [remember, setRemember] = useState(false);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const key = text.trim();
    if (!key) return;
    setKey(key, remember);
    onEnd(true);
  };
  return (
    <form className="stack" onSubmit={submit}>
      <Field label={t("keyLabel")} error={isRefused && !text && t("keyRefused")}>
        {(wiring) => (
          <div className="key-row">
            <Input
              {...wiring}
              type={isShown ? "text" : "password"}
              value={text}
              data-first
              spellCheck={false}
              autoCapitalize="off"
              onChange={(event) => setText(event.target.value)}
            />
            <IconButton label={t(isShown ? "keyHide" : "keyShow")} onClick={() => setShown(!isShown)}>
              {isShown ? <EyeOff /> : <Eye />}
            </IconButton>
          </div>
        )}
      </Field>
      <label className="check">
        <input type="checkbox" checked={remember} onChange={(event) => setRemember(event.target.checked)} />
        <span>{t("keyRemember")}</span>
      </label>
      <div className="dialog-foot">
        <Button onClick={() => onEnd(false)}>{t("ui:cancel")}</Button>
        <Button type="submit" variant="primary" disabled={!text.trim()}>{t("keyUse")}</Button>
      </div>
    </form>
  );
}
