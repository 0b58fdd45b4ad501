// Anthropic's SDK for Node works against offpeak as it does against Anthropic.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Anthropic, CLAUDE, eventually, start, startOracle } from "./rig/index.js";

const DAY = { headers: { "x-offpeak-sla": "24h" } };
const ask = (prompt, more) => ({
  model: CLAUDE,
  max_tokens: 200,
  messages: [{ role: "user", content: prompt }],
  ...more,
});

test("messages, now and streamed, and how many tokens they have", async (t) => {
  const [{ anthropic, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const { data, response } = await anthropic().messages.create(ask("What is a gateway?")).withResponse();
  const expected = await oracle.anthropic().messages.create(ask("What is a gateway?"));
  assert.deepEqual([data.content, data.stop_reason], [expected.content, expected.stop_reason]);
  assert.equal(response.headers.get("x-offpeak-mode"), "realtime");

  const stream = anthropic().messages.stream(ask("What is a gateway?"));
  let text = "";
  stream.on("text", (piece) => (text += piece));
  assert.deepEqual((await stream.finalMessage()).content, expected.content);
  assert.equal(text, expected.content[0].text);

  const { max_tokens: _, ...counted } = ask("How many?");
  const count = await anthropic().messages.countTokens(counted);
  assert.deepEqual(count, await oracle.anthropic().messages.countTokens(counted));
  assert.equal(await provider.billed("realtime"), 2);
});

test("a held call is answered at half price", async (t) => {
  const [{ anthropic, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const { data, response } = await anthropic().messages.create(ask("whenever"), DAY).withResponse();
  const expected = await oracle.anthropic().messages.create(ask("whenever"));
  assert.deepEqual(data.content, expected.content);
  assert.equal(response.headers.get("x-offpeak-mode"), "deferred");
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [1, 0]);
});

test("errors are the SDK's own, and what passes is retried", async (t) => {
  const { anthropic, provider } = await start(t);
  for (const [status, kind] of [
    [400, Anthropic.BadRequestError],
    [403, Anthropic.PermissionDeniedError],
    [429, Anthropic.RateLimitError],
    [500, Anthropic.InternalServerError],
  ]) {
    await provider.next("messages", "status", { status });
    await assert.rejects(anthropic({ maxRetries: 0 }).messages.create(ask("x")), (error) => {
      assert(error instanceof kind, `${status}: ${error}`);
      assert.equal(error.error.type, "error");
      return true;
    });
  }
  const nobody = anthropic({ apiKey: "sk-of-nobody" }).messages.create(ask("x"));
  await assert.rejects(nobody, Anthropic.AuthenticationError);
  await provider.next("messages", "status", { status: 529 });
  assert((await anthropic().messages.create(ask("again"))).content[0].text);
});

test("a message batch: created, polled, read, and what failed sent again", async (t) => {
  const [{ anthropic, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const { batches } = anthropic().messages;
  const ended = (job) =>
    eventually(async () => {
      const found = await batches.retrieve(job.id);
      return found.processing_status === "ended" && found;
    }, `the end of ${job.id}`);
  const requests = Array.from({ length: 8 }, (_, number) => ({
    custom_id: `item-${number}`,
    params: ask(`question ${number}`, number === 5 ? { max_tokens: 0 } : {}),
  }));
  const job = await ended(await batches.create({ requests }));
  assert.deepEqual([job.request_counts.succeeded, job.request_counts.errored], [7, 1]);
  const results = new Map();
  for await (const line of await batches.results(job.id)) results.set(line.custom_id, line.result);
  assert.equal(results.size, 8);
  assert.equal(results.get("item-5").type, "errored");
  const expected = await oracle.anthropic().messages.create(requests[2].params);
  assert.deepEqual(results.get("item-2").message.content, expected.content);

  const again = await ended(await batches.create({ requests: [{ custom_id: "item-5", params: ask("enough") }] }));
  assert.equal(again.request_counts.succeeded, 1);
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [8, 0]);

  await provider.nextBatchTakes(20);
  const stopped = await batches.create({ requests: requests.slice(0, 2) });
  await eventually(async () => (await provider.calls("create_message_batch")) >= 3, "the batch has left");
  await batches.cancel(stopped.id);
  assert.equal((await ended(stopped)).request_counts.canceled, 2);
  assert.equal((await batches.delete(job.id)).type, "message_batch_deleted");
  await assert.rejects(batches.retrieve(job.id), Anthropic.NotFoundError);
});
