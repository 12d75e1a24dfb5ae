import type { ConversationSummary, Language } from "../api/types";

export type GroupName = "today" | "yesterday" | "week";

export interface Group {
  key: string;
  name: GroupName | null; // null: a month, which `label` names
  label: string;
  items: ConversationSummary[];
}

const locale = (language: Language): string => (language === "zh" ? "zh-CN" : "en");

/** A list that is sorted by time, newest first, cut where a day, a week or a month ends. */
export function groupByDay(list: ConversationSummary[], now: Date, language: Language): Group[] {
  const groups: Group[] = [];
  for (const item of list) {
    const place = placeOf(new Date(item.updated * 1000), now, language);
    const last = groups.at(-1);
    if (last?.key === place.key) last.items.push(item);
    else groups.push({ ...place, items: [item] });
  }
  return groups;
}

function placeOf(date: Date, now: Date, language: Language): Omit<Group, "items"> {
  const midnight = (days: number) => new Date(now.getFullYear(), now.getMonth(), now.getDate() - days);
  const named = (name: GroupName) => ({ key: name, name, label: "" });
  if (date >= midnight(0)) return named("today");
  if (date >= midnight(1)) return named("yesterday");
  if (date >= midnight(7)) return named("week");
  const isThisYear = date.getFullYear() === now.getFullYear();
  const year = isThisYear ? undefined : "numeric";
  const label = new Intl.DateTimeFormat(locale(language), { month: "long", year }).format(date);
  return { key: label, name: null, label };
}
