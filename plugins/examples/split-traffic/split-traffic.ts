// A router that moves traffic to another backend a share at a time. Requests belong together by a header, such as a session's id:
// all of a session go to the same backend, and none comes back while the share grows.

import type { Candidate, Decision, Envelope, Sla } from "offpeak:plugin/routing@0.1.0";

/** The plugin's own table of the configuration. */
export interface Settings {
  /** The backend that gets the share. */
  to: string;
  /** In thousandths. */
  share: number;
  /** The header that says what belongs together, in lower case. */
  by: string;
}

export function readSettings(json: string): Settings {
  const { to, share = 0, by = "x-session-id", ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there are to, share and by`);
  }
  if (typeof to !== "string") {
    throw new Error("to names the backend that gets the share");
  }
  if (!Number.isInteger(share) || share < 0 || share > 1000) {
    throw new Error("share is a whole number of thousandths, from 0 to 1000");
  }
  if (typeof by !== "string") {
    throw new Error("by names a header");
  }
  return { to, share, by: by.toLowerCase() };
}

/** The decision, from plain values alone: this is what tests call. */
export function choose(
  { to, share, by }: Settings,
  { sla, headers }: Pick<Envelope, "sla" | "headers">,
  candidates: Candidate[],
): Decision {
  const session = headers.find(({ name }) => name === by)?.value;
  // Without the header nothing says what belongs together, so it stays where it was.
  const moves = session !== undefined && place(session) < share;
  const [best] = candidates
    .filter(({ backend, healthy }) => healthy && (backend === to) === moves)
    .flatMap(({ backend, offers }) => offers.map((offer) => ({ backend, ...offer })))
    .filter(({ mode, usualMs }) => keeps(sla, mode, usualMs))
    .sort((one, other) => rank(sla, one) - rank(sla, other));
  if (best === undefined) {
    return { tag: "pass" }; // nobody there is well: the next router takes whom there is
  }
  return { tag: "choose", val: { backend: best.backend, offer: best.name, withinMs: null, lane: "" } };
}

function keeps(sla: Sla, mode: string, usualMs: number): boolean {
  return sla.tag === "within" ? usualMs <= sla.val : mode === "realtime";
}

/** In real time the fastest, else the cheapest. */
function rank(sla: Sla, { usualMs, pricePermille }: { usualMs: number; pricePermille: number }): number {
  return sla.tag === "within" ? pricePermille : usualMs;
}

/** Where a session stands from 0 to 999, always the same: FNV-1a over its UTF-16 units. */
export function place(session: string): number {
  let hash = 0x811c9dc5;
  for (let at = 0; at < session.length; at += 1) {
    hash = Math.imul(hash ^ session.charCodeAt(at), 0x01000193);
  }
  // The low bits of a short text's hash are poorly mixed.
  hash ^= hash >>> 15;
  return (hash >>> 0) % 1000;
}
