// A router: what can wait takes the cheapest offer that usually keeps its deadline, and the tenants that the configuration names
// take the fastest one.

import type { Candidate, Decision, Envelope, Offer } from "offpeak:plugin/routing@0.1.0";

/** The plugin's own table of the configuration. */
export interface Settings {
  hurried: string[];
}

export function readSettings(json: string): Settings {
  const { hurried = [], ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there is hurried`);
  }
  if (!Array.isArray(hurried)) {
    throw new Error("hurried is a list of tenants");
  }
  return { hurried };
}

/** The decision, from plain values alone: this is what tests call. */
export function choose(settings: Settings, envelope: Envelope, candidates: Candidate[]): Decision {
  if (envelope.sla.tag !== "within") {
    return { tag: "pass" }; // real time is the next router's business
  }
  const within = envelope.sla.val;
  const isHurried = settings.hurried.includes(envelope.tenant);
  const rank = (offer: Offer) => (isHurried ? offer.usualMs : offer.pricePermille);
  const [best] = candidates
    .filter(({ healthy }) => healthy)
    .flatMap(({ backend, offers }) => offers.map((offer) => ({ backend, offer })))
    .filter(({ offer }) => offer.usualMs <= within)
    .sort((one, other) => rank(one.offer) - rank(other.offer));
  if (best === undefined) {
    return { tag: "pass" };
  }
  return { tag: "choose", val: { backend: best.backend, offer: best.offer.name, withinMs: null, lane: "" } };
}
