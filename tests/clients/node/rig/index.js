// Starts and ends the programs under test, and says what they did.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Program } from "./programs.js";
import { Anthropic, OpenAI } from "./sdks.js";

export { Anthropic, OpenAI } from "./sdks.js";
export { eventually } from "./programs.js";

export const MODEL = "gpt-4o-mini";
export const CLAUDE = "claude-haiku-4-5";

// The key that the provider asks for; no client of offpeak ever has it.
const PROVIDER_KEY = "sk-of-the-provider";

// What the tenants show.
const KEYS = { search: "sk-of-search", mail: "sk-of-mail" };

// An hour at the provider passes in a second, so that a batch takes less than one.
const SPEED = 3600;

/** What a user could have written. Waits fit a provider whose hours are seconds. */
function configuration(provider, folder, cache, more) {
  return `
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
drain = "1s"

[store]
folder = ${JSON.stringify(join(folder, "data"))}

[plugins]
cache = ${JSON.stringify(cache)}

# The tests share two cores with whatever else runs there.
[plugins.router]
time_limit = "5s"

[plugins.providers.openai]
time_limit = "5s"

[plugins.providers.anthropic]
time_limit = "5s"

[tenants.search]
keys = [{ env = "SEARCH_KEY" }]

[tenants.mail]
keys = [{ env = "MAIL_KEY" }]

[backends.simulated]
provider = "openai"
base_url = "${provider}"
api_key = { env = "PROVIDER_KEY" }
models = ["gpt-*", "text-embedding-*"]

[backends.simulated.lanes]
linger = "150ms"

[backends.simulated.config]
poll_ms = 50
poll_max_ms = 100
retry_ms = 50
settle_ms = 200

[backends.claude]
provider = "anthropic"
base_url = "${provider}"
api_key = { env = "PROVIDER_KEY" }
models = ["claude-*"]

[backends.claude.lanes]
linger = "150ms"

[backends.claude.config]
poll_ms = 50
poll_max_ms = 100
retry_ms = 50
settle_ms = 200

[retry]
base = "50ms"
cap = "500ms"

[log]
format = "json"
level = "info,offpeak=debug"
${more}`;
}

async function json(url, init) {
  const response = await fetch(url, init);
  assert(response.ok, `${url}: ${response.status} ${response.statusText}`);
  return response.json();
}

/** The simulated provider, its bill and its faults. */
class Provider {
  static async start(folder, args) {
    const fixed = ["--listen", "127.0.0.1:0", "--speed", `${SPEED}`, "--seed", "7", "--key", PROVIDER_KEY];
    const log = join(mkdtempSync(join(folder, "provider-")), "log");
    const provider = new Provider();
    provider.program = new Program("PROVIDER_SIM_BIN", [...fixed, "--track-executions", ...args], log);
    provider.url = (await provider.program.waitFor(/listening on (http:\/\/\S+)\n/))[1];
    return provider;
  }

  /** The SDK, straight to the provider. */
  client() {
    return new OpenAI({ baseURL: `${this.url}/v1`, apiKey: PROVIDER_KEY });
  }

  /** Anthropic's. */
  anthropic() {
    return new Anthropic({ baseURL: this.url, apiKey: PROVIDER_KEY });
  }

  /** How many requests ran in a mode. */
  async billed(mode) {
    const { lines } = await json(`${this.url}/sim/bill`);
    return lines.filter((line) => line.mode === mode).reduce((sum, line) => sum + line.requests, 0);
  }

  /** How many calls an endpoint got. */
  async calls(endpoint) {
    return (await json(`${this.url}/sim/stats`)).calls[endpoint];
  }

  /** Plans faults: `set`, `next` or `next_batch`, as `provider-sim --help` explains them. */
  async plan(plan) {
    const response = await fetch(`${this.url}/sim/faults`, { method: "POST", body: JSON.stringify(plan) });
    assert(response.ok, await response.text());
  }

  /** Orders a fault for the next call of an endpoint. */
  next(endpoint, kind, details = {}) {
    return this.plan({ next: [{ endpoint, fault: { kind, ...details } }] });
  }

  /** How long, in real time, the next batch takes from creation to completion. */
  nextBatchTakes(seconds) {
    return this.plan({ next_batch: [[{ kind: "turnaround", ms: seconds * SPEED * 1000 }]] });
  }
}

/** The daemon in front of a provider. */
class Daemon {
  static async start(provider, folder, cache, more) {
    const daemon = new Daemon();
    const config = join(folder, "offpeak.toml");
    writeFileSync(config, configuration(provider, folder, cache, more));
    const secrets = { SEARCH_KEY: KEYS.search, MAIL_KEY: KEYS.mail, PROVIDER_KEY };
    daemon.program = new Program("OFFPEAK_BIN", ["serve", "--config", config], join(folder, "offpeak.log"), secrets);
    const ready = await daemon.program.waitFor(/^.*"message":"offpeak is ready".*$/m);
    const { data, admin } = JSON.parse(ready[0]).fields;
    daemon.url = `http://${data}`;
    daemon.admin = `http://${admin}`;
    return daemon;
  }

  /** The sum of a metric over its labels. */
  async metric(name) {
    const text = await (await fetch(`${this.admin}/metrics`)).text();
    const samples = text.split("\n").filter((line) => line.split(/[{ ]/)[0] === name);
    return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }
}

/**
 * Starts a provider and the daemon in front of it; both end with the test, the daemon cleanly.
 * `sim` are arguments of the provider, `more` is appended to the configuration.
 */
export async function start(t, { sim = [], more = "" } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "offpeak-node-"));
  const cache = process.env.PLUGIN_CACHE ?? join(folder, "plugins");
  const provider = await Provider.start(folder, sim);
  t.after(async () => {
    await provider.program.kill();
    rmSync(folder, { recursive: true });
  });
  const daemon = await Daemon.start(provider.url, folder, cache, more);
  t.after(async () => {
    const code = await daemon.program.stop();
    if (code !== 0 || !t.passed) t.diagnostic(daemon.program.lastWords());
    assert.equal(code, 0, "the daemon did not stop cleanly");
  });
  return {
    provider,
    daemon,
    /** OpenAI's SDK as an application uses it: only the base URL is changed. */
    client: (options) => new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: KEYS.search, ...options }),
    /** Anthropic's. */
    anthropic: (options) => new Anthropic({ baseURL: daemon.url, apiKey: KEYS.search, ...options }),
  };
}

/** Another provider of the same kind, which says what the answers have to be without showing on the bill. */
export async function startOracle(t) {
  const folder = mkdtempSync(join(tmpdir(), "offpeak-node-"));
  const provider = await Provider.start(folder, []);
  t.after(async () => {
    await provider.program.kill();
    rmSync(folder, { recursive: true });
  });
  return provider;
}
