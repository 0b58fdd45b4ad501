// What the daemon calls; wit/cost-policy.wit says when and with what. The decisions are in my-plugin.ts, which runs without a daemon
// too.

import host from "offpeak:plugin/host@0.1.0";
import type { Costing } from "offpeak:plugin/costing@0.1.0";

import { charge, readSettings, type Settings } from "./my-plugin.js";

let settings: Settings | undefined;

// Read once: the daemon hands over the same settings as long as this instance lives.
const settled = (): Settings => (settings ??= readSettings(host.config()));

// What is thrown ends the call. The daemon says of it what was logged before.
function told<Values extends unknown[], Answer>(call: (...values: Values) => Answer) {
  return (...values: Values): Answer => {
    try {
      return call(...values);
    } catch (error) {
      host.log("error", error instanceof Error ? `${error.message} ${error.stack ?? ""}` : String(error));
      throw error;
    }
  };
}

export const costing: Costing = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1" };
  }),

  assess: told((sale, outcomes) => outcomes.map((outcome) => charge(settled(), sale, outcome))),
};
