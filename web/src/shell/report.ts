import { ApiError, OfflineError } from "../api/client";
import { problemText } from "../i18n/server";
import { usePreferences } from "../store/preferences";
import { useSession } from "../store/session";
import { useToasts } from "../ui";

/** Says what goes wrong; true where nothing does. */
export async function report(work: Promise<unknown>): Promise<boolean> {
  try {
    await work;
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      useSession.setState({ status: "locked" }); // the banner says it
      return false;
    }
    useToasts.getState().say(problemText(error, usePreferences.getState().language), "error");
    return false;
  }
}

/** The same for what nobody asked for: that the server is away is said by the banner alone. */
export async function reportQuietly(work: Promise<unknown>): Promise<void> {
  await report(work.catch((error: unknown) => {
    if (!(error instanceof OfflineError)) throw error;
    useSession.getState().refreshSoon();
  }));
}
