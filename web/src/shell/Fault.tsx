import { Component, type ReactNode } from "react";
import { useTranslation } from "react-i18next";
import { Button } from "../ui";

interface FaultProps {
  children: ReactNode;
  resetKey: string; // where it changes, the children get another chance
}

/** Keeps a fault in one part of the page from taking away the rest. */
export class Fault extends Component<FaultProps, { error: Error | null }> {
  override state = { error: null };

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  override componentDidUpdate(before: FaultProps) {
    if (this.state.error && before.resetKey !== this.props.resetKey) this.setState({ error: null });
  }

  override render() {
    return this.state.error ? <FaultText error={this.state.error} /> : this.props.children;
  }
}

function FaultText({ error }: { error: Error }) {
  const { t } = useTranslation("shell");
  return (
    <div className="fault" role="alert">
      <h2>{t("pageFault")}</h2>
      <p>{t("pageFaultText")}</p>
      <p className="muted small">{error.message}</p>
      <Button variant="primary" onClick={() => location.reload()}>{t("reload")}</Button>
    </div>
  );
}
