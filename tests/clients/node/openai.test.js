// OpenAI's SDK for Node: real time passes as if offpeak were not there, what can wait rides the batch API.

import assert from "node:assert/strict";
import { test } from "node:test";

import { MODEL, OpenAI, eventually, start, startOracle } from "./rig/index.js";

const DAY = { headers: { "x-offpeak-sla": "24h" } };
const ask = (prompt) => ({ model: MODEL, messages: [{ role: "user", content: prompt }] });

test("chat, now", async (t) => {
  const [{ client, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const { data, response } = await client().chat.completions.create(ask("What is a gateway?")).withResponse();
  const expected = await oracle.client().chat.completions.create(ask("What is a gateway?"));
  assert.deepEqual([data.choices, data.usage], [expected.choices, expected.usage]);
  assert.equal(response.headers.get("x-offpeak-mode"), "realtime");
  assert.equal(data._request_id, response.headers.get("x-request-id"));
  assert.equal(await provider.billed("realtime"), 1);
});

test("a stream, word by word", async (t) => {
  const [{ client }, oracle] = await Promise.all([start(t, { sim: ["--stream-gap-ms", "5"] }), startOracle(t)]);
  const request = { ...ask("Tell me."), stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await client().chat.completions.create(request)) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  const expected = await oracle.client().chat.completions.create(ask("Tell me."));
  assert.equal(text, expected.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, expected.usage);

  const runner = client().chat.completions.stream(ask("Tell me."));
  assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);
});

test("embeddings are base64 on the wire, which the SDK asks for by itself", async (t) => {
  const [{ client }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const request = { model: "text-embedding-3-small", input: ["near", "far"] };
  const expected = await oracle.client().embeddings.create({ ...request, encoding_format: "float" });
  for (const options of [undefined, DAY]) {
    const answer = await client().embeddings.create(request, options);
    assert.equal(answer.data.length, 2);
    answer.data.forEach(({ embedding }, index) => {
      assert.equal(embedding.length, expected.data[index].embedding.length);
      embedding.forEach((number, at) => assert(Math.abs(number - expected.data[index].embedding[at]) < 1e-6));
    });
  }
});

test("a held call is answered at half price", async (t) => {
  const [{ client, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const { data, response } = await client().chat.completions.create(ask("whenever"), DAY).withResponse();
  const expected = await oracle.client().chat.completions.create(ask("whenever"));
  assert.deepEqual(data.choices, expected.choices);
  assert.equal(response.headers.get("x-offpeak-mode"), "deferred");
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [1, 0]);
});

test("a ticket becomes the answer", async (t) => {
  const { client, daemon } = await start(t);
  const headers = { ...DAY.headers, prefer: "respond-async" };
  const ticket = await client().chat.completions.create(ask("with a ticket"), { headers }).asResponse();
  assert.equal(ticket.status, 202);
  const path = ticket.headers.get("location").replace(/^\/v1/, "");
  const answer = await eventually(async () => {
    const looked = await client().get(path).asResponse();
    return looked.status === 200 && looked.json();
  }, "the ticket's answer");
  assert(answer.choices[0].message.content);
  assert.equal(await daemon.metric("offpeak_deferred_accepted_total"), 1);
});

test("errors are the SDK's own", async (t) => {
  const { client, provider } = await start(t);
  for (const [status, kind] of [
    [400, OpenAI.BadRequestError],
    [403, OpenAI.PermissionDeniedError],
    [409, OpenAI.ConflictError],
    [422, OpenAI.UnprocessableEntityError],
    [429, OpenAI.RateLimitError],
    [500, OpenAI.InternalServerError],
  ]) {
    await provider.next("chat_completions", "status", { status });
    await assert.rejects(client({ maxRetries: 0 }).chat.completions.create(ask("x")), (error) => {
      assert(error instanceof kind, `${status}: ${error}`);
      assert.equal(error.status, status);
      return true;
    });
  }
  await assert.rejects(client({ apiKey: "sk-of-nobody" }).chat.completions.create(ask("x")), OpenAI.AuthenticationError);
  const unknown = client().chat.completions.create({ ...ask("x"), model: "of-elsewhere" });
  await assert.rejects(unknown, { code: "model_not_found", param: "model", type: "invalid_request_error" });
  const tagged = client().chat.completions.create(ask("x"), { headers: { "x-offpeak-sla": "soon" } });
  await assert.rejects(tagged, { status: 400, code: "invalid_sla" });
});

test("what passes is retried by the SDK, and a retry of a held call attaches", async (t) => {
  const { client, daemon, provider } = await start(t);
  await provider.next("chat_completions", "status", { status: 503 });
  assert((await client().chat.completions.create(ask("again"))).choices[0].message.content);
  assert.equal(await provider.calls("chat_completions"), 2);

  await provider.nextBatchTakes(3);
  const impatient = client({ timeout: 1000, maxRetries: 8 });
  assert((await impatient.chat.completions.create(ask("slow"), DAY)).choices[0].message.content);
  assert((await daemon.metric("offpeak_deferred_attached_total")) >= 1);
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [1, 1]);
});
