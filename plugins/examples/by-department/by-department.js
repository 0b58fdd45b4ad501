// A cost policy that charges departments: tenants are applications, and the configuration says whose they are. Money is in whole
// pico-dollars, 10^-12 dollars, as in wit/cost-policy.wit.

/**
 * The plugin's own table of the configuration.
 *
 * @param {string} json
 * @returns {{ departments: Record<string, string[]>, other: string | null }}
 */
export function readSettings(json) {
  const { departments = {}, other = null, ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there are departments and other`);
  }
  const seen = new Map();
  for (const [department, tenants] of Object.entries(departments)) {
    for (const tenant of tenants) {
      if (seen.has(tenant)) {
        throw new Error(`the tenant ${tenant} belongs to ${seen.get(tenant)} and to ${department}: name it once`);
      }
      seen.set(tenant, department);
    }
  }
  return { departments, other };
}

/**
 * Who pays for a tenant: its department, or else the one for all others, or itself.
 *
 * @param {ReturnType<typeof readSettings>} settings
 * @param {string} tenant
 */
export function payer({ departments, other }, tenant) {
  const found = Object.entries(departments).find(([, tenants]) => tenants.includes(tenant));
  return found?.[0] ?? other ?? tenant;
}

/**
 * One charge for each outcome, in order.
 *
 * @param {ReturnType<typeof readSettings>} settings
 * @param {Pick<import("offpeak:plugin/costing@0.1.0").Sale, "rates" | "pricePermille">} sale
 * @param {Pick<import("offpeak:plugin/costing@0.1.0").Outcome, "tenant" | "usage" | "wasted">[]} outcomes
 * @returns {import("offpeak:plugin/costing@0.1.0").Charge[]}
 */
export function assess(settings, sale, outcomes) {
  /** @param {string} name */
  const price = (name) => sale.rates.find((rate) => rate.name === name)?.price;
  const [input, output] = [price("input_cost_per_token"), price("output_cost_per_token")];
  return outcomes.map(({ tenant, usage, wasted }) => {
    const charged = { tenant: payer(settings, tenant), cost: 0, realtimeCost: 0, priced: true };
    if (usage === null) {
      return charged; // the provider counted nothing, so it charges nothing
    }
    if (input === undefined || output === undefined) {
      return { ...charged, priced: false };
    }
    // Multiplied first, so that nothing is lost: these are whole numbers far below 2^53 for a single answer.
    const full = usage.input * input + usage.output * output;
    const cost = Math.round((full * sale.pricePermille) / 1000);
    // What nobody got would not have been bought in real time.
    return { ...charged, cost, realtimeCost: wasted ? 0 : full };
  });
}
