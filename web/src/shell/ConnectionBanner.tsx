import { CircleCheck, KeyRound, TriangleAlert, WifiOff } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { useTranslation } from "react-i18next";
import { useSession } from "../store/session";
import { Button } from "../ui";

const RECOVERED_SECONDS = 4;

/** What is wrong between the page and the server; and, for a moment, that it is over. */
export function ConnectionBanner() {
  const { t } = useTranslation("shell");
  const { status, problem, refresh, refreshSoon } = useSession();
  const recovered = useRecovered(status === "offline", status === "online");
  const [isTrying, setTrying] = useState(false);
  const tryNow = async () => {
    setTrying(true);
    await refresh();
    setTrying(false);
    refreshSoon();
  };
  return (
    <div role="status" className="banner-place">
      {status === "offline" && (
        <div className="banner banner-warn">
          <WifiOff aria-hidden="true" />
          <span>{t("offline")}</span>
          <Button small busy={isTrying} onClick={() => void tryNow()}>{t("tryNow")}</Button>
        </div>
      )}
      {status === "locked" && (
        <div className="banner banner-warn">
          <KeyRound aria-hidden="true" />
          <span>{t("locked")}</span>
          <Button small onClick={() => void tryNow()}>{t("enterKey")}</Button>
        </div>
      )}
      {status === "online" && problem && (
        <div className="banner banner-warn">
          <TriangleAlert aria-hidden="true" />
          <span>{t("serverProblem", { problem })}</span>
        </div>
      )}
      {recovered && (
        <div className="banner banner-ok">
          <CircleCheck aria-hidden="true" />
          <span>{t("recovered")}</span>
        </div>
      )}
    </div>
  );
}

/** True for a while once the server is there again. */
function useRecovered(isAway: boolean, isThere: boolean): boolean {
  const wasAway = useRef(false);
  const [shown, setShown] = useState(false);
  useEffect(() => {
    if (isAway) wasAway.current = true;
    setShown(isThere && wasAway.current);
    if (!isThere || !wasAway.current) return undefined;
    wasAway.current = false;
    const timer = setTimeout(() => setShown(false), RECOVERED_SECONDS * 1000);
    return () => clearTimeout(timer);
  }, [isAway, isThere]);
  return shown;
}
