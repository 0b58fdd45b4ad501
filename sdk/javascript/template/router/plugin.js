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

const isText = (value) => typeof value === "string";
const isWhole = (value) => Number.isSafeInteger(value) && value >= 0;

// The members of a decision, and those of them that may be left out.
const FORMS = {
  choose: { backend: isText, offer: isText, lane: isText, withinMs: isWhole },
  reject: { status: isWhole, code: isText, message: isText, retryAfterS: isWhole },
  pass: {},
};
const MAY_BE_MISSING = ["withinMs", "retryAfterS"];

function misfit(decision) {
  const form = FORMS[decision?.tag];
  if (!form) {
    return `a decision is { tag: "choose", val }, { tag: "reject", val } or { tag: "pass" }, and not ${JSON.stringify(decision)}`;
  }
  const members = decision.val ?? {};
  const names = Object.keys(form);
  const unknown = Object.keys(members).find((name) => !names.includes(name));
  if (unknown) return `a decision to ${decision.tag} has no ${unknown}; it has ${names.join(", ")}`;
  for (const name of names) {
    const value = members[name] ?? undefined;
    if (value === undefined && !MAY_BE_MISSING.includes(name)) return `a decision to ${decision.tag} needs ${name}`;
    if (value !== undefined && !form[name](value)) {
      const what = form[name] === isText ? "a text" : "a whole number, not below zero";
      return `${name} of a decision to ${decision.tag} must be ${what}, and not ${JSON.stringify(value)}`;
    }
  }
}

export const routing = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "my-plugin", version: "1", body: { tag: "none" }, headers: [] };
  }),

  route: told((envelope, candidates) => choose(settled(), envelope, candidates), misfit),
};
