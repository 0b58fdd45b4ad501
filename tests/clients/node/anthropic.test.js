// Anthropic's SDK for Node works against offpeak as it does against Anthropic.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Anthropic, CLAUDE, start, startOracle } from "./rig/index.js";

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
