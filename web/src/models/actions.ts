import { api } from "../api/client";
import { useSession } from "../store/session";

export type ModelAction = "load" | "unload" | "pull";

/** Asks the server to do it. The answer may take as long as the work: its progress comes with the
 * session, which looks more often meanwhile. */
export async function act(action: ModelAction, id: string): Promise<void> {
  const { refreshSoon } = useSession.getState();
  const work = api[action](id);
  const timer = setTimeout(refreshSoon, 150);
  try {
    await work;
  } finally {
    clearTimeout(timer);
    refreshSoon();
  }
}
