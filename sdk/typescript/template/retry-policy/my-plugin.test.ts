// The decisions, without a daemon and without WebAssembly. `node build.js` runs these first.

import assert from "node:assert/strict";
import { test } from "node:test";

import { judge, readSettings, type Seen } from "./my-plugin.js";

const DAY_MS = 86_400_000;
const settings = readSettings('{"permanent": ["image_too_large"]}');

// An attempt like any other.
const usual: Seen = {
  backend: "openai",
  endpoint: "/v1/chat/completions",
  model: "gpt-4o-mini",
  offer: "batch",
  mode: "batch",
  ending: { tag: "answered", val: 503 },
  body: "",
  attempts: 1,
  retryAfterMs: null,
  leftMs: DAY_MS,
};

const meaning = (status: number, body = "", leftMs = DAY_MS) =>
  judge(settings, { ...usual, ending: { tag: "answered", val: status }, body, leftMs }).tag;

test("what passes is tried again, and near its deadline at once", () => {
  assert.equal(meaning(503), "temporary");
  assert.equal(meaning(429), "temporary");
  assert.equal(meaning(503, "", 60_000), "run-now");
});

test("what is wrong stays wrong", () => {
  assert.equal(meaning(400), "permanent");
  assert.equal(meaning(500, "image_too_large"), "permanent");
});

test("a misspelt setting is refused", () => {
  assert.throws(() => readSettings('{"permament": []}'), /unknown settings: permament/);
});
