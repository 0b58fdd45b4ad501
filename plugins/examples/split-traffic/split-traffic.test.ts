// The decisions, without a daemon and without WebAssembly. `node build.js` runs these first.

import assert from "node:assert/strict";
import { test } from "node:test";

import type { Candidate, Sla } from "offpeak:plugin/routing@0.1.0";

import { choose, place, readSettings } from "./split-traffic.js";

const HOUR_MS = 3_600_000;
const DAY: Sla = { tag: "within", val: 24 * HOUR_MS };
const NOW: Sla = { tag: "realtime" };

const selling = (backend: string): Candidate => ({
  backend,
  healthy: true,
  offers: [
    { name: "standard", mode: "realtime", pricePermille: 1000, windowMs: 0, usualMs: 5_000 },
    { name: "batch", mode: "batch", pricePermille: 500, windowMs: 24 * HOUR_MS, usualMs: HOUR_MS },
  ],
});

const both = [selling("old"), selling("new")];
const sessions = Array.from({ length: 10_000 }, (_, number) => `session-${number}`);

function went(share: number, session: string | null, sla = NOW, candidates = both) {
  const headers = session === null ? [] : [{ name: "x-session-id", value: session }];
  const decision = choose(readSettings(JSON.stringify({ to: "new", share })), { sla, headers }, candidates);
  return decision.tag === "choose" ? `${decision.val.backend} ${decision.val.offer}` : decision.tag;
}

test("about so many sessions move, and none comes back when more do", () => {
  const moved = (share: number) => sessions.filter((session) => went(share, session) === "new standard");
  const [few, many] = [moved(50), moved(300)];
  assert.ok(few.length > 400 && few.length < 600, `${few.length} of 10,000`);
  assert.ok(many.length > 2800 && many.length < 3200, `${many.length} of 10,000`);
  assert.ok(few.every((session) => place(session) < 50 && many.includes(session)));
  assert.equal(moved(0).length, 0);
  assert.equal(moved(1000).length, sessions.length);
});

test("what can wait moves too, to the cheapest offer that keeps its deadline", () => {
  assert.equal(went(1000, "a", DAY), "new batch");
  assert.equal(went(0, "a", DAY), "old batch");
  assert.equal(went(1000, "a", { tag: "within", val: HOUR_MS / 2 }), "new standard");
});

test("what has no session stays", () => {
  assert.equal(went(999, null), "old standard");
});

test("where nobody is well, the next router decides", () => {
  assert.equal(went(1000, "a", NOW, [selling("old"), { ...selling("new"), healthy: false }]), "pass");
  assert.equal(went(0, "a", NOW, [selling("new")]), "pass");
});

test("wrong settings are refused", () => {
  assert.throws(() => readSettings('{"to": "new", "shares": 5}'), /unknown settings: shares/);
  assert.throws(() => readSettings('{"share": 5}'), /to names the backend/);
  assert.throws(() => readSettings('{"to": "new", "share": 1001}'), /from 0 to 1000/);
  assert.throws(() => readSettings('{"to": "new", "by": 5}'), /by names a header/);
});
