// A retry policy: near its deadline a request that passes is run at once, and errors that the configuration names are final.

import type { Attempt, Meaning } from "offpeak:plugin/judging@0.1.0";

const HURRY_MS = 600_000;
const PASSING = [408, 409, 429];

/** The plugin's own table of the configuration. */
export interface Settings {
  permanent: string[];
}

export function readSettings(json: string): Settings {
  const { permanent = [], ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there is permanent`);
  }
  if (!Array.isArray(permanent)) {
    throw new Error("permanent is a list of texts");
  }
  return { permanent };
}

/** An attempt, with the answer's body as text. */
export type Seen = Omit<Attempt, "body"> & { body: string };

/** The decision, from plain values alone: this is what tests call. */
export function judge(settings: Settings, { ending, body, leftMs }: Seen): Meaning {
  const isWrong = ending.tag === "answered" && ending.val < 500 && !PASSING.includes(ending.val);
  if (isWrong || settings.permanent.some((text) => body.includes(text))) {
    return { tag: "permanent" };
  }
  return leftMs < HURRY_MS ? { tag: "run-now" } : { tag: "temporary", val: null };
}
