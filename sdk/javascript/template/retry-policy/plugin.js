// What the daemon calls; wit/retry-policy.wit says when and with what. The decisions are in my-plugin.js, which runs without a
// daemon too.

import host from "offpeak:plugin/host@0.1.0";

import { judge, readSettings } from "./my-plugin.js";

let settings;

// Read once: the daemon hands over the same settings as long as this instance lives.
const settled = () => (settings ??= readSettings(host.config()));

// What is thrown ends the call. The daemon says of it what was logged before. An answer of another form than the contract's would end
// it without a word, so it is looked at first.
function told(call, misfit = () => undefined) {
  return (...values) => {
    try {
      const answer = call(...values);
      const problem = misfit(answer);
      if (problem) throw new TypeError(problem);
      return answer;
    } catch (error) {
      host.log("error", error instanceof Error ? `${error.message} ${error.stack ?? ""}` : String(error));
      throw error;
    }
  };
}

const MEANINGS = ["permanent", "temporary", "elsewhere", "run-now", "no-room", "not-sold", "exhausted"];

function misfit(meaning) {
  if (MEANINGS.includes(meaning?.tag)) return undefined;
  return `a meaning is { tag } with one of ${MEANINGS.join(", ")}, and not ${JSON.stringify(meaning)}`;
}

export const judging = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1" };
  }),

  judge: told((attempt) => {
    // Bytes come in; this engine has no TextDecoder, and error bodies are mostly ASCII.
    const body = Array.from(attempt.body, (byte) => String.fromCharCode(byte)).join("");
    return judge(settled(), { ...attempt, body });
  }, misfit),
};
