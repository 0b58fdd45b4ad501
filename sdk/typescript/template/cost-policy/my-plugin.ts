// A cost policy: what the provider charges by the price book, to the departments that the configuration names. Money is in whole
// pico-dollars, 10^-12 dollars, as in wit/cost-policy.wit.

import type { Charge, Outcome, Sale } from "offpeak:plugin/costing@0.1.0";

/** The plugin's own table of the configuration. */
export interface Settings {
  payers: Map<string, string>;
}

export function readSettings(json: string): Settings {
  const { payers = {}, ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there is payers`);
  }
  return { payers: new Map(Object.entries(payers)) };
}

/** The decision, from plain values alone: this is what tests call. */
export function charge(settings: Settings, sale: Sale, { tenant, usage, wasted }: Outcome): Charge {
  const price = (name: string) => sale.rates.find((rate) => rate.name === name)?.price;
  const charged = { tenant: settings.payers.get(tenant) ?? tenant, cost: 0, realtimeCost: 0, priced: true };
  if (usage === null) {
    return charged; // the provider counted nothing, so it charges nothing
  }
  const [input, output] = [price("input_cost_per_token"), price("output_cost_per_token")];
  if (input === undefined || output === undefined) {
    return { ...charged, priced: false };
  }
  // Multiplied first, so that nothing is lost: these are whole numbers far below 2^53 for a single answer.
  const full = usage.input * input + usage.output * output;
  // What nobody got would not have been bought in real time.
  return { ...charged, cost: Math.floor((full * sale.pricePermille) / 1000), realtimeCost: wasted ? 0 : full };
}
