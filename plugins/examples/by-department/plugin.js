// What the daemon calls; wit/cost-policy.wit says when and with what. The decisions are in by-department.js, which runs without
// a daemon too.

import host from "offpeak:plugin/host@0.1.0";

import { assess, readSettings } from "./by-department.js";

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

const MEMBERS = ["tenant", "cost", "realtimeCost", "priced"];

function misfit(charges) {
  if (!Array.isArray(charges)) return `charges are a list, one for each outcome, and not ${JSON.stringify(charges)}`;
  const wrong = charges.find((charge) => MEMBERS.some((name) => charge?.[name] === undefined));
  return wrong && `a charge has ${MEMBERS.join(", ")}, and not ${JSON.stringify(wrong)}`;
}

export const costing = {
  describe: told(() => {
    settled(); // a wrong configuration is refused when the plugin is loaded
    return { name: "by-department", version: "1" };
  }),

  assess: told((sale, outcomes) => assess(settled(), sale, outcomes), misfit),
};
