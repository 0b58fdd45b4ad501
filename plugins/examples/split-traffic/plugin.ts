// What the daemon calls; wit/router.wit says when and with what. The decisions are in split-traffic.ts, which runs without a
// daemon too.

import host from "offpeak:plugin/host@0.1.0";
import type { Routing } from "offpeak:plugin/routing@0.1.0";

import { choose, readSettings, type Settings } from "./split-traffic.js";

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

export const routing: Routing = {
  describe: told(() => {
    // A wrong configuration is refused here, when the plugin is loaded.
    return { name: "split-traffic", version: "1", body: { tag: "none" }, headers: [settled().by] };
  }),

  route: told((envelope, candidates) => choose(settled(), envelope, candidates)),
};
