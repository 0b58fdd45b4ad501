// What the daemon calls; wit/retry-policy.wit says when and with what. The decisions are in my-plugin.ts, which runs without a daemon
// too.

import host from "offpeak:plugin/host@0.1.0";
import type { Judging } from "offpeak:plugin/judging@0.1.0";

import { judge, readSettings, type Settings } from "./my-plugin.js";

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

export const judging: Judging = {
  describe() {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1" };
  },

  judge(attempt) {
    // Bytes come in; this engine has no TextDecoder, and error bodies are mostly ASCII.
    const body = Array.from(attempt.body, (byte) => String.fromCharCode(byte)).join("");
    return judge(settled(), { ...attempt, body });
  },
};
