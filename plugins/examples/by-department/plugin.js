// What the daemon calls; wit/cost-policy.wit says when and with what. The decisions are in by-department.js, which runs without
// a daemon too.

import host from "offpeak:plugin/host@0.1.0";

import { assess, readSettings } from "./by-department.js";

let settings;

// Read once: the daemon hands over the same settings as long as this instance lives.
function settled() {
  try {
    settings ??= readSettings(host.config());
  } catch (error) {
    host.log("error", error.message); // which is what the daemon then says of the plugin
    throw error;
  }
  return settings;
}

export const costing = {
  describe() {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "by-department", version: "1" };
  },

  assess(sale, outcomes) {
    return assess(settled(), sale, outcomes);
  },
};
