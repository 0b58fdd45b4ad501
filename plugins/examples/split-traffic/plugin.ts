// What the daemon calls; wit/router.wit says when and with what. The decisions are in split-traffic.ts, which runs without a
// daemon too.

import host from "offpeak:plugin/host@0.1.0";
import type { Routing } from "offpeak:plugin/routing@0.1.0";

import { choose, readSettings, type Settings } from "./split-traffic.js";

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

export const routing: Routing = {
  describe() {
    // A wrong configuration is refused here, when the plugin is loaded.
    return { name: "split-traffic", version: "1", body: { tag: "none" }, headers: [settled().by] };
  },

  route(envelope, candidates) {
    return choose(settled(), envelope, candidates);
  },
};
