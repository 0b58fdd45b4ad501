// The decisions, without a daemon and without WebAssembly. `node build.js` runs these first.

import assert from "node:assert/strict";
import { test } from "node:test";

import type { Outcome, Sale, Usage } from "offpeak:plugin/costing@0.1.0";

import { charge, readSettings } from "./my-plugin.js";

const settings = readSettings('{"payers": {"search": "research"}}');

const sale: Sale = {
  backend: "openai",
  endpoint: "/v1/chat/completions",
  model: "gpt-4o-mini",
  offer: "batch",
  mode: "batch",
  pricePermille: 500,
  rates: [
    { name: "input_cost_per_token", price: 150_000 },
    { name: "output_cost_per_token", price: 600_000 },
  ],
};

const usage: Usage = {
  input: 1000,
  cached: 0,
  cacheWritten: 0,
  cacheWrittenOneHour: 0,
  audioInput: 0,
  output: 100,
  reasoning: 0,
  audioOutput: 0,
};

const answered = (tenant: string): Outcome => ({
  tenant,
  purpose: "first",
  ran: "ran",
  status: 200,
  tier: null,
  usage,
  wasted: false,
  tookMs: 0,
  together: 1,
});

test("the payer pays what was bought, and sees what real time would have cost", () => {
  const expected = { tenant: "research", cost: 105_000_000, realtimeCost: 210_000_000, priced: true };
  assert.deepEqual(charge(settings, sale, answered("search")), expected);
  assert.equal(charge(settings, sale, answered("mail")).tenant, "mail");
});

test("what nobody got is paid for, and saves nothing", () => {
  const { cost, realtimeCost } = charge(settings, sale, { ...answered("mail"), wasted: true });
  assert.deepEqual([cost, realtimeCost], [105_000_000, 0]);
});

test("what was not counted costs nothing, and what has no price says so", () => {
  assert.equal(charge(settings, sale, { ...answered("mail"), usage: null }).cost, 0);
  assert.equal(charge(settings, { ...sale, rates: [] }, answered("mail")).priced, false);
});

test("a misspelt setting is refused", () => {
  assert.throws(() => readSettings('{"payer": {}}'), /unknown settings: payer/);
});
