// A router: what can wait takes the cheapest offer that usually keeps its deadline, and the tenants that the configuration names
// take the fastest one.

/**
 * The plugin's own table of the configuration.
 *
 * @param {string} json
 * @returns {{ hurried: string[] }}
 */
export function readSettings(json) {
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

/**
 * The decision, from plain values alone: this is what tests call.
 *
 * @param {ReturnType<typeof readSettings>} settings
 * @param {Pick<import("offpeak:plugin/routing@0.1.0").Envelope, "tenant" | "sla">} envelope
 * @param {import("offpeak:plugin/routing@0.1.0").Candidate[]} candidates
 * @returns {import("offpeak:plugin/routing@0.1.0").Decision}
 */
export function choose(settings, envelope, candidates) {
  if (envelope.sla.tag !== "within") {
    return { tag: "pass" }; // real time is the next router's business
  }
  const isHurried = settings.hurried.includes(envelope.tenant);
  /** @param {import("offpeak:plugin/routing@0.1.0").Offer} offer */
  const rank = (offer) => (isHurried ? offer.usualMs : offer.pricePermille);
  let best;
  for (const { backend, healthy, offers } of candidates) {
    for (const offer of healthy ? offers : []) {
      if (offer.usualMs <= envelope.sla.val && (best === undefined || rank(offer) < rank(best.offer))) {
        best = { backend, offer };
      }
    }
  }
  if (best === undefined) {
    return { tag: "pass" };
  }
  return { tag: "choose", val: { backend: best.backend, offer: best.offer.name, withinMs: null, lane: "" } };
}
