// What the server sends and takes. The server's side of this file is docs/api.md.

/** A picture that the server keeps: its SHA-256 names it, /api/attachments/ID gives its bytes. */
export interface Picture {
  id: string;
  media_type: string;
  name: string;
}

export type MessageStatus = "streaming" | "done" | "stopped" | "length" | "error";

/** What is shown below an answer. Seconds; tokens as the server counted them. */
export interface AnswerStats {
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  first_token_seconds: number;
  total_seconds: number;
}

/** A node of a conversation's tree. Siblings are versions: of an edited question, or of an answer. */
export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  pictures: Picture[];
  created: number; // Unix seconds
  model: string | null; // that answered
  status: MessageStatus;
  error: string | null;
  stats: AnswerStats | null;
}

/** null: as the model, or the server, has it. */
export interface Sampling {
  temperature: number | null;
  top_p: number | null;
  top_k: number | null;
  min_p: number | null;
  repetition_penalty: number | null;
  max_tokens: number | null;
  seed: number | null;
}

/** Of a conversation, or of new conversations. */
export interface ChatSettings {
  model: string | null;
  system: string | null; // null: the template's own; "": none
  sampling: Sampling;
}

export interface ConversationSummary {
  id: string;
  title: string;
  created: number;
  updated: number;
}

/** leaf: the end of the branch that is shown. */
export interface Conversation extends ConversationSummary {
  settings: ChatSettings;
  leaf: string | null;
  messages: Message[];
}

export type ModelState = "loaded" | "loading" | "unloaded" | "failed" | "absent";

/** Bytes. What a model takes of the server's memory. */
export interface MemoryPlan {
  fits: boolean;
  least_bytes: number; // to run at all
  good_bytes: number; // to run with one long chat
  budget_bytes: number; // of the server, for all models
}

/** /api/models: those that are served, and those that the catalog has besides ("absent": not here). */
export interface Model {
  id: string;
  title: string;
  served: boolean;
  installed: boolean;
  shipped: boolean;
  download_bytes: number;
  state: ModelState;
  progress: number | null; // 0 to 1, of a load or a download
  status: string | null; // what is being done, or why it failed
  max_model_len: number | null;
  input_modalities: string[];
  memory_bytes: number | null; // while it is loaded
  plan: MemoryPlan | null;
  sampling: Partial<Sampling> | null; // the model's own defaults, once they are known
  languages: string[] | null; // that it is known to speak; null: unknown
}

export interface ServerStatus {
  version: string;
  can_pull: boolean;
  models: Model[];
}

export interface Example {
  id: string;
  pictures: string[];
  question: Record<Language, string>;
  alt: Record<Language, string>;
}

export type Language = "en" | "zh";
