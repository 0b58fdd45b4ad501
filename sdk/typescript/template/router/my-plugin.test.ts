// The decisions, without a daemon and without WebAssembly. `node build.js` runs these first.

import assert from "node:assert/strict";
import { test } from "node:test";

import type { Candidate, Envelope, Sla } from "offpeak:plugin/routing@0.1.0";

import { choose, readSettings } from "./my-plugin.js";

const HOUR_MS = 3_600_000;
const settings = readSettings('{"hurried": ["search"]}');

const candidate: Candidate = {
  backend: "openai",
  healthy: true,
  offers: [
    { name: "standard", mode: "realtime", pricePermille: 1000, windowMs: 0, usualMs: 0 },
    { name: "batch", mode: "batch", pricePermille: 500, windowMs: 24 * HOUR_MS, usualMs: HOUR_MS },
  ],
};

// A request that says nothing special.
const usual: Envelope = {
  tenant: "mail",
  endpoint: "/v1/chat/completions",
  model: "gpt-4o-mini",
  sla: { tag: "realtime" },
  tag: "header",
  stream: false,
  bodyBytes: 2000,
  inputTokens: 500,
  maxOutputTokens: null,
  headers: [],
  body: null,
};

const decide = (tenant: string, sla: Sla, candidates = [candidate]) =>
  choose(settings, { ...usual, tenant, sla }, candidates);

function offerFor(tenant: string, hours: number) {
  const decision = decide(tenant, { tag: "within", val: hours * HOUR_MS });
  return decision.tag === "choose" ? decision.val.offer : decision.tag;
}

test("what can wait is cheap, and the hurried are served at once", () => {
  assert.equal(offerFor("mail", 24), "batch");
  assert.equal(offerFor("search", 24), "standard");
});

test("a deadline that a batch would miss is kept", () => {
  assert.equal(offerFor("mail", 0.5), "standard");
});

test("real time and the sick are left to others", () => {
  assert.deepEqual(decide("mail", { tag: "realtime" }), { tag: "pass" });
  const sick = { ...candidate, healthy: false };
  assert.deepEqual(decide("mail", { tag: "within", val: HOUR_MS }, [sick]), { tag: "pass" });
});

test("a misspelt setting is refused", () => {
  assert.throws(() => readSettings('{"huried": []}'), /unknown settings: huried/);
});
