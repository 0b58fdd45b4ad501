// What the daemon calls; wit/router.wit says when and with what. The decisions are in my-plugin.js, which runs without a daemon
// too.

import host from "offpeak:plugin/host@0.1.0";

import { choose, readSettings } from "./my-plugin.js";

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

// The members of a decision that must be there, and those that may.
const FORMS = {
  choose: [["backend", "offer", "lane"], ["withinMs"]],
  reject: [["status", "code", "message"], ["retryAfterS"]],
  pass: [[], []],
};

function misfit(decision) {
  const form = FORMS[decision?.tag];
  if (!form) {
    return `a decision is { tag: "choose", val }, { tag: "reject", val } or { tag: "pass" }, and not ${JSON.stringify(decision)}`;
  }
  const [needed, possible] = form;
  const names = Object.keys(decision.val ?? {});
  const missing = needed.find((name) => !names.includes(name));
  const unknown = names.find((name) => !needed.includes(name) && !possible.includes(name));
  if (missing) return `a decision to ${decision.tag} needs ${missing}`;
  return unknown && `a decision to ${decision.tag} has no ${unknown}; it has ${[...needed, ...possible].join(", ")}`;
}

export const routing = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1", body: { tag: "none" }, headers: [] };
  }),

  route: told((envelope, candidates) => choose(settled(), envelope, candidates), misfit),
};
