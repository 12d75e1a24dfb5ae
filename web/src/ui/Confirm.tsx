import { useTranslation } from "react-i18next";
import { Button } from "./Button";
import { Dialog } from "./Dialog";

export interface ConfirmProps {
  open: boolean;
  title: string;
  text: string;
  action: string; // on the button that does it
  danger?: boolean;
  onConfirm: () => void;
  onClose: () => void;
}

export function Confirm({ open, title, text, action, danger = false, onConfirm, onClose }: ConfirmProps) {
  const { t } = useTranslation("ui");
  const confirm = () => {
    onClose();
    onConfirm();
  };
  const footer = (
    <>
      <Button onClick={onClose} data-first>{t("cancel")}</Button>
      <Button variant={danger ? "danger" : "primary"} onClick={confirm}>{action}</Button>
    </>
  );
  return (
    <Dialog open={open} onClose={onClose} title={title} description={text} footer={footer} className="dialog-small" />
  );
}
