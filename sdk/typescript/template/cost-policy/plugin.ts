// What the daemon calls; wit/cost-policy.wit says when and with what. The decisions are in my-plugin.ts, which runs without a daemon
// too.

import host from "offpeak:plugin/host@0.1.0";
import type { Costing } from "offpeak:plugin/costing@0.1.0";

import { charge, readSettings, type Settings } from "./my-plugin.js";

let settings: Settings | undefined;

// Read once: the daemon hands over the same settings as long as this instance lives.
function settled(): Settings {
  try {
    settings ??= readSettings(host.config());
    return settings;
  } catch (error) {
    host.log("error", error instanceof Error ? error.message : String(error)); // which is what the daemon then says of the plugin
    throw error;
  }
}

export const costing: Costing = {
  describe() {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1" };
  },

  assess(sale, outcomes) {
    return outcomes.map((outcome) => charge(settled(), sale, outcome));
  },
};
