// A retry policy: near its deadline a request that passes is run at once, and errors that the configuration names are final.

const HURRY_MS = 600_000;
const PASSING = [408, 409, 429];

/**
 * The plugin's own table of the configuration.
 *
 * @param {string} json
 * @returns {{ permanent: string[] }}
 */
export function readSettings(json) {
  const { permanent = [], ...unknown } = JSON.parse(json);
  const names = Object.keys(unknown);
  if (names.length > 0) {
    throw new Error(`unknown settings: ${names.join(", ")}; there is permanent`);
  }
  if (!Array.isArray(permanent)) {
    throw new Error("permanent is a list of texts");
  }
  return { permanent };
}

/**
 * The decision, from plain values alone: this is what tests call.
 *
 * @param {ReturnType<typeof readSettings>} settings
 * @param {{ ending: import("offpeak:plugin/judging@0.1.0").Ending, body: string, leftMs: number }} attempt
 * @returns {import("offpeak:plugin/judging@0.1.0").Meaning}
 */
export function judge(settings, { ending, body, leftMs }) {
  const isWrong = ending.tag === "answered" && ending.val < 500 && !PASSING.includes(ending.val);
  if (isWrong || settings.permanent.some((text) => body.includes(text))) {
    return { tag: "permanent" };
  }
  return leftMs < HURRY_MS ? { tag: "run-now" } : { tag: "temporary", val: null };
}
