import { useEffect, useState } from "react";
import { useTranslation } from "react-i18next";

import { api } from "../api/client";
import type { Conversation, Example, Model } from "../api/types";
import { problemText } from "../i18n/server";
import { useAnswers } from "../store/answers";
import { useChats, useModelOf } from "../store/chats";
import { usePreferences } from "../store/preferences";
import { readiest, sees, useSession } from "../store/session";
import { useToasts } from "../ui";

const ASKS = ["ask1", "ask2", "ask3", "ask4"] as const;

/** What a new conversation shows: what may be asked. */
export function Welcome({ conversation }: { conversation: Conversation }) {
  const { t } = useTranslation("chat");
  const model = useModelOf(conversation);
  const canSee = useSession(({ models }) => models.some((each) => each.served && sees(each)));
  return (
    <section className="welcome">
      <h2>{t(sees(model) ? "welcomeSees" : "welcome")}</h2>
      {model && <Offers conversation={conversation} model={model} canSee={canSee} />}
    </section>
  );
}

interface Offer {
  key: string;
  text: string;
  alt: string;
  files: readonly string[];
}

function Offers({ conversation, model, canSee }: { conversation: Conversation; model: Model; canSee: boolean }) {
  const { t, i18n } = useTranslation("chat");
  const language = usePreferences((state) => state.language);
  const examples = useExamples();
  const [isAsking, setIsAsking] = useState(false);
  const isSpoken = model.languages === null || model.languages.includes(language);
  const words = i18n.getFixedT(isSpoken ? language : "en", "chat");
  const shows = canSee ? examples.map(({ id, question, alt, pictures }): Offer => (
    { key: id, text: question[language], alt: alt[language], files: pictures })) : [];
  const asks = sees(model) && shows.length > 0 ? [] : ASKS.map((key): Offer => ({ key, text: words(key), alt: "", files: [] }));
  const ask = async (offer: Offer) => {
    setIsAsking(true); // one click, one question
    const error = await askOffer(conversation, offer);
    if (error) useToasts.getState().say(problemText(error, language), "error");
    setIsAsking(false);
  };
  return (
    <ul className="offers" aria-label={t("examples")} inert={isAsking}>
      {[...asks, ...shows].map((offer) => (
        <li key={offer.key}>
          <button type="button" className="offer" onClick={() => void ask(offer)}>
            {offer.files.length > 0 && (
              <span className="offer-pictures">
                {offer.files.map((file) => <img key={file} src={`examples/${file}`} alt={offer.alt} draggable={false} />)}
              </span>
            )}
            <span>{offer.text}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

function useExamples(): Example[] {
  const [examples, setExamples] = useState<Example[]>([]);
  useEffect(() => {
    api.examples().then(setExamples, () => undefined); // a page without examples works
  }, []);
  return examples;
}

async function askOffer({ id }: Conversation, { text, alt, files }: Offer): Promise<Error | null> {
  try {
    if (files.length > 0) await chooseSeeing(id);
    const pictures = await Promise.all(files.map(async (file) => {
      const response = await fetch(`examples/${file}`);
      return api.upload(await response.blob(), alt);
    }));
    return await useAnswers.getState().send(id, text, pictures);
  } catch (error) {
    return error as Error;
  }
}

/** A model that sees answers an example with pictures. */
async function chooseSeeing(id: string): Promise<void> {
  const { models, chosen } = useSession.getState();
  const conversation = useChats.getState().held[id];
  const asked = models.find((model) => model.id === (conversation?.settings.model ?? chosen));
  const able = readiest(models.filter(sees));
  if (!sees(asked) && able) await useChats.getState().chooseModel(able.id);
}
