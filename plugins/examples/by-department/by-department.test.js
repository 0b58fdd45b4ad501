// The decisions, without a daemon and without WebAssembly. `node build.js` runs these first.

import assert from "node:assert/strict";
import { test } from "node:test";

import { assess, payer, readSettings } from "./by-department.js";

const settings = readSettings('{"departments": {"research": ["search", "labels"], "sales": ["mail"]}, "other": "overhead"}');

const sale = {
  pricePermille: 500,
  rates: [
    { name: "input_cost_per_token", price: 150_000 },
    { name: "output_cost_per_token", price: 600_000 },
  ],
};

const answered = (tenant) => ({ tenant, usage: { input: 1000, output: 100 }, wasted: false });

test("a department pays for its applications", () => {
  assert.equal(payer(settings, "labels"), "research");
  assert.equal(payer(settings, "mail"), "sales");
  assert.equal(payer(settings, "wiki"), "overhead");
  assert.equal(payer(readSettings("{}"), "wiki"), "wiki");
});

test("it pays what was bought, and sees what real time would have cost", () => {
  const [charge] = assess(settings, sale, [answered("search")]);
  assert.deepEqual(charge, { tenant: "research", cost: 105_000_000, realtimeCost: 210_000_000, priced: true });
});

test("what nobody got is paid for, and saves nothing", () => {
  const [charge] = assess(settings, sale, [{ ...answered("mail"), wasted: true }]);
  assert.deepEqual([charge.cost, charge.realtimeCost], [105_000_000, 0]);
});

test("what was not counted costs nothing, and what has no price says so", () => {
  assert.equal(assess(settings, sale, [{ ...answered("mail"), usage: null }])[0].cost, 0);
  assert.equal(assess(settings, { ...sale, rates: [] }, [answered("mail")])[0].priced, false);
});

test("wrong settings are refused", () => {
  assert.throws(() => readSettings('{"department": {}}'), /unknown settings: department/);
  assert.throws(() => readSettings('{"departments": {"a": ["x"], "b": ["x"]}}'), /name it once/);
});
