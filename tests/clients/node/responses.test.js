// Background responses and the list of models, as OpenAI's SDK for Node asks for them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { MODEL, OpenAI, eventually, start, startOracle } from "./rig/index.js";

test("a background response is fetched later, at half price", async (t) => {
  const [{ client, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const request = { model: "gpt-5-mini", input: "no hurry" };
  const created = await client().responses.create({ ...request, background: true });
  assert(["queued", "in_progress"].includes(created.status));
  const response = await eventually(async () => {
    const found = await client().responses.retrieve(created.id);
    return !["queued", "in_progress"].includes(found.status) && found;
  }, "the response");
  const expected = await oracle.client().responses.create(request);
  assert.deepEqual([response.status, response.output_text], ["completed", expected.output_text]);
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [1, 0]);
  await client().responses.delete(created.id);
  await assert.rejects(client().responses.retrieve(created.id), OpenAI.NotFoundError);
});

test("a background response can be cancelled", async (t) => {
  const { client, provider } = await start(t);
  await provider.nextBatchTakes(20);
  const created = await client().responses.create({ model: "gpt-5-mini", input: "never mind", background: true });
  assert.equal((await client().responses.cancel(created.id)).status, "cancelled");
});

test("models", async (t) => {
  const { client } = await start(t);
  const names = [];
  for await (const model of client().models.list()) names.push(model.id);
  assert(names.includes(MODEL) && names.includes("text-embedding-3-small"), names.join());
  assert.equal((await client().models.retrieve(MODEL)).id, MODEL);
});
