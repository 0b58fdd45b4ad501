// What the daemon calls; wit/cost-policy.wit says when and with what. The decisions are in by-department.js, which runs without
// a daemon too.

import host from "offpeak:plugin/host@0.1.0";

import { assess, readSettings } from "./by-department.js";

let settings;

// Read once: the daemon hands over the same settings as long as this instance lives.
const settled = () => (settings ??= readSettings(host.config()));

// What is thrown ends the call. The daemon says of it what was logged before.
function told(call) {
  return (...values) => {
    try {
      return call(...values);
    } catch (error) {
      host.log("error", error instanceof Error ? error.message : String(error));
      throw error;
    }
  };
}

export const costing = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "by-department", version: "1" };
  }),

  assess: told((sale, outcomes) => assess(settled(), sale, outcomes)),
};
